"""Merging and splitting against stock Megatron-Core's `add_index`."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stock import DOCUMENTS, DTYPES, merge_stock, pair_bytes, put_beside, write_stock

from megatron_synth.config import ConfigError, DataError, RunError
from megatron_synth.packing import read_corpus_info
from megatron_synth.packing.indexed import IndexedWriter
from megatron_synth.packing.merging import merge
from megatron_synth.packing.reader import IndexedReader
from megatron_synth.packing.splitting import split
from megatron_synth.runs import exclusive
from megatron_synth.tokens import train_tokenizer


def _visible(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def _hidden(folder):
    return [p.name for p in folder.iterdir() if p.name.startswith(".") and p.suffix != ".lock"]


@settings(max_examples=12, deadline=None)  # stock add_index collects garbage: slow
@given(several=st.lists(DOCUMENTS, min_size=1, max_size=4), dtype=DTYPES, modes=st.booleans())
def test_a_merge_is_byte_identical_to_stock_megatrons(tmp_path_factory, several, dtype, modes):
    folder = tmp_path_factory.mktemp("m")
    if modes:  # a dataset without sequences cannot tell that it has modes
        several = [[*documents, [[1]]] for documents in several]
    stems = [write_stock(folder / f"d{i}", d, dtype, modes) for i, d in enumerate(several)]
    made = merge(stems, folder / "out")
    assert pair_bytes(made.stem) == pair_bytes(merge_stock(stems, folder / "s", dtype, modes))
    assert made.documents == sum(map(len, several))
    assert not made.provenance and made.info is None
    assert _hidden(folder) == []


@settings(max_examples=50, deadline=None)
@given(documents=DOCUMENTS, dtype=DTYPES, data=st.data(), modes=st.booleans())
def test_merging_what_was_split_gives_the_same_files(
    tmp_path_factory, documents, dtype, data, modes
):
    folder = tmp_path_factory.mktemp("s")
    stem = write_stock(folder / "d", documents, dtype, modes and all(documents))
    put_beside(stem, documents, dtype)
    longest = max(sum(map(len, d)) for d in documents)
    if data.draw(st.booleans()):
        how = {"parts": data.draw(st.integers(1, len(documents)))}
    else:
        how = {"tokens": data.draw(st.integers(max(1, longest), max(1, longest) + 20))}
    made = split(stem, folder / "part", **how)
    assert "parts" not in how or len(made) == how["parts"]
    assert all(part.documents for part in made)
    assert all(part.tokens <= how.get("tokens", part.tokens) for part in made)
    for number, part in enumerate(made):
        assert part.stem.name == f"part-{number:05d}-of-{len(made):05d}_text_document"
        assert IndexedReader(part.stem).documents == part.documents
        assert part.info == read_corpus_info(part.stem)
    whole = merge([part.stem for part in made], folder / "whole")
    assert pair_bytes(whole.stem) == pair_bytes(stem)
    assert json.loads(Path(f"{whole.stem}.json").read_text()) == json.loads(
        Path(f"{stem}.json").read_text()
    )
    rows = [pq.read_table(f"{s}.provenance.parquet").to_pylist() for s in (stem, whole.stem)]
    assert rows[0] == rows[1]


def test_parts_are_as_equal_as_documents_allow(tmp_path):
    rng = random.Random(1)
    documents = [[[1] * rng.randrange(1, 200)] for _ in range(500)]
    made = split(write_stock(tmp_path / "d", documents), tmp_path / "o", parts=7)
    mean = sum(part.tokens for part in made) / 7
    assert all(abs(part.tokens - mean) <= 200 for part in made)


def test_infos_and_side_tables_are_merged(tmp_path):
    several = [[[[1, 2]], []], [[[3]]]]
    for i, documents in enumerate(several):
        stem = write_stock(tmp_path / f"c{i}_text_document", documents)
        put_beside(stem, documents, text_bytes=10 + i, special_spellings=i)
    made = merge([tmp_path / "c0", tmp_path / "c1"], tmp_path / "out")
    info = read_corpus_info(tmp_path / "out")
    assert info == made.info
    assert (info.documents, info.tokens, info.longest, info.empty_documents) == (3, 3, 2, 1)
    assert (info.text_bytes, info.special_spellings, info.vocab_size) == (21, 1, 60_001)
    rows = pq.read_table(tmp_path / "out_text_document.provenance.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["c0-0", "c0-1", "c1-0"]
    assert info.content_hash == made.content_hash
    (tmp_path / "c1_text_document.json").unlink()
    (tmp_path / "c1_text_document.provenance.parquet").unlink()
    made = merge([tmp_path / "c0", tmp_path / "c1"], tmp_path / "out")
    assert (made.info, made.provenance) == (None, False)
    assert sorted(p.name for p in tmp_path.glob("out*")) == [
        "out_text_document.bin",
        "out_text_document.idx",
    ]


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    documents = [[[1, 2]]]
    a = write_stock(tmp_path / "a", documents)
    other = write_stock(tmp_path / "other", documents, np.uint16)
    modal = write_stock(tmp_path / "modal", documents, modes=True)
    with pytest.raises(DataError, match=r"uint16.* int32"):
        merge([a, other], tmp_path / "out")
    with pytest.raises(DataError, match="modes"):
        merge([a, modal], tmp_path / "out")
    put_beside(a, documents)
    b = write_stock(tmp_path / "b", documents)
    put_beside(b, documents, tokenizer="u")
    with pytest.raises(DataError, match="tokenizer is u, but t"):
        merge([a, b], tmp_path / "out")
    put_beside(b, documents, tokens=3)
    with pytest.raises(DataError, match="not of one packing"):
        merge([a, b], tmp_path / "out")
    put_beside(b, documents)
    pq.write_table(pq.read_table(tmp_path / "b.provenance.parquet")[:0], f"{b}.provenance.parquet")
    with pytest.raises(DataError, match="0 rows for 1 documents"):
        merge([a, b], tmp_path / "out")
    with pytest.raises(ConfigError, match="replace what it is made from"):
        merge([write_stock(tmp_path / "c_text_document", documents)], tmp_path / "c")
    with pytest.raises(ConfigError, match="no datasets"):
        merge([], tmp_path / "out")
    for wrong in ({}, {"parts": 1, "tokens": 1}, {"parts": 0}, {"tokens": -1}):
        with pytest.raises(ConfigError):
            split(a, tmp_path / "out", **wrong)
    with pytest.raises(DataError, match="cannot be cut into 2 parts"):
        split(a, tmp_path / "out", parts=2)
    with pytest.raises(DataError, match="document 0 alone has 2 tokens, more than 1"):
        split(a, tmp_path / "out", tokens=1)
    assert not list(tmp_path.glob("out*"))


def test_the_texts_of_parts_are_counted_with_the_tokenizer_or_there_is_no_info(tmp_path):
    texts = ["one two three", "two é <|endoftext|> four", "", "three four five"] * 5
    tokenizer = train_tokenizer(texts, 270, tmp_path / "tokenizer")
    documents = [[[*tokenizer.encode(text), tokenizer.eos_id]] for text in texts]
    stem = write_stock(tmp_path / "d", documents, np.uint16)
    settings = {
        "tokenizer": tokenizer.fingerprint,
        "eos_id": tokenizer.eos_id,
        "text_bytes": sum(len(text.encode()) for text in texts),
        "special_spellings": 5,
    }
    put_beside(stem, documents, np.uint16, **settings)
    assert all(part.info is None for part in split(stem, tmp_path / "o", parts=3))
    made = split(stem, tmp_path / "o", parts=3, tokenizer=tokenizer)
    assert sum(part.info.text_bytes for part in made) == settings["text_bytes"]
    assert sum(part.info.special_spellings for part in made) == 5
    whole = merge([part.stem for part in made], tmp_path / "w")
    assert read_corpus_info(whole.stem).content_hash == whole.content_hash
    assert json.loads(Path(f"{whole.stem}.json").read_text()) == json.loads(
        (tmp_path / "d.json").read_text()
    )
    put_beside(stem, documents, np.uint16, **{**settings, "text_bytes": 7})
    assert all(p.info is None for p in split(stem, tmp_path / "o", parts=3, tokenizer=tokenizer))
    assert not list(tmp_path.glob("o-*.json"))


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch):
    from megatron_synth.packing import product

    stem = write_stock(tmp_path / "d", [[[1] * 5000]])
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(product.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(RunError, match="GB are free"):
        merge([stem], tmp_path / "out")
    monkeypatch.undo()
    real = product.Product.discard
    monkeypatch.setattr(product.Product, "discard", lambda self: None)
    (tmp_path / ".out_text_document.tmp.bin").symlink_to("/dev/full")
    with pytest.raises(RunError, match="no space left"):
        merge([stem], tmp_path / "out")
    real(product.Product(tmp_path / "out_text_document"))
    assert sorted(_visible(tmp_path)) == ["d.bin", "d.idx"]


def test_two_merges_into_one_place_do_not_mix(tmp_path):
    stem = write_stock(tmp_path / "d", [[[1]]])
    with (
        exclusive(tmp_path / ".out_text_document.lock", "test"),
        pytest.raises(RunError, match="another process"),
    ):
        merge([stem], tmp_path / "out")


def _large(stem, tokens):
    """A dataset of documents of 0 to 3,000 tokens."""
    rng = np.random.default_rng(0)
    with IndexedWriter(Path(f"{stem}.bin"), Path(f"{stem}.idx"), np.uint16) as writer:
        while writer.tokens < tokens:
            lengths = rng.integers(0, 3000, 500)
            writer.add(rng.integers(0, 60_000, lengths.sum()), lengths)
        writer.finish()
    return stem


def test_memory_does_not_grow_with_the_dataset(tmp_path):
    peaks = []
    for size in (5_000_000, 25_000_000):  # 10 MB, 50 MB
        stem = _large(tmp_path / str(size), size)
        tracemalloc.start()
        merge([stem, stem], tmp_path / "out")
        split(stem, tmp_path / "part", parts=3)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 12e6
    assert peaks[1] < peaks[0] + 2e6


def test_resident_memory_is_bounded_too(tmp_path):
    stem = _large(tmp_path / "d", 100_000_000)  # 200 MB
    code = (
        "import resource, sys; from megatron_synth.packing.merging import merge;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3;"
        "before = peak(); merge([sys.argv[1]] * 2, sys.argv[2]); print(peak() - before)"
    )
    command = [sys.executable, "-c", code, str(stem), str(tmp_path / "out")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 160  # MB; 64 of them are mapped pages of the dataset


SCRIPT = """
import sys
from megatron_synth.packing.merging import merge
print("go", flush=True)
merge(sys.argv[1:3], sys.argv[3])
"""


@pytest.mark.slow
def test_a_killed_merge_leaves_nothing_half_written_and_the_next_is_identical(tmp_path):
    stems = []
    for i in range(2):
        stems.append(_large(tmp_path / f"d{i}", 20_000_000))
        count = IndexedReader(stems[-1]).documents
        put_beside(stems[-1], [[]] * count, info=False)
    started = time.monotonic()
    merge(stems, tmp_path / "whole" / "o")
    seconds = time.monotonic() - started
    whole = _visible(tmp_path / "whole")
    rng = random.Random(3)
    killed = 0
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        command = [sys.executable, "-c", SCRIPT, *map(str, stems), str(tmp_path / "out" / "o")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(seconds * (share + rng.uniform(-0.1, 0.1)))
            os.kill(process.pid, signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        found = _visible(tmp_path / "out") if (tmp_path / "out").is_dir() else {}
        assert all(whole[name] == content for name, content in found.items())
    assert killed >= 3
    merge(stems, tmp_path / "out" / "o")
    assert _visible(tmp_path / "out") == whole
    assert _hidden(tmp_path / "out") == []


def test_a_merge_replaces_an_older_one(tmp_path):
    stems = [write_stock(tmp_path / f"d{i}", [[[i] * 3]] * (i + 1)) for i in range(3)]
    for a, b in pairwise(stems):
        merge([a, b], tmp_path / "out")
    assert pair_bytes(tmp_path / "out_text_document") == pair_bytes(
        merge_stock(stems[1:], tmp_path / "s")
    )
