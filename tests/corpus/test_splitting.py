"""The split: validation never in training, D inside the pool, exact token counts, no leaks."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.config import DataError
from megatron_synth.corpus import (
    Document,
    HoldOutConfig,
    SplitConfig,
    choose_held_out,
    read_documents,
    shares_shingle,
    split_corpus,
    training_texts,
    write_documents,
)
from megatron_synth.corpus.overlap import Overlap
from megatron_synth.tokens import train_tokenizer

PARTS = ("validation", "organic", "pool")


def _text(rng, words):
    syllables = ["ka", "lo", "mi", "ru", "te", "so", "na", "vi"]
    return " ".join("".join(rng.choices(syllables, k=3)) for _ in range(words))


def _documents(count, *, groups=None, seed=0):
    rng = random.Random(seed)
    return [
        Document(
            f"d{i}",
            _text(rng, rng.randint(20, 120)),
            metadata={"package": f"p{rng.randrange(groups)}"} if groups else {},
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = [d.text for d in _documents(100)]
    return train_tokenizer(texts, 400, tmp_path_factory.mktemp("tokenizer"))


def _split(tmp_path, documents, tokenizer, **settings):
    path = tmp_path / "documents.jsonl.zst"
    write_documents(path, documents)
    base = {"validation_documents": 30, "organic_tokens": 3000, "pool_tokens": 20_000}
    config = SplitConfig(**{**base, **settings})
    counts = split_corpus(config, path, tokenizer, tmp_path / "out")
    return counts, {p: list(read_documents(tmp_path / "out" / f"{p}.jsonl.zst")) for p in PARTS}


@pytest.mark.parametrize("groups", [None, 40])
def test_the_parts_are_what_the_counts_say(tmp_path, tokenizer, groups):
    documents = _documents(900, groups=groups)
    counts, parts = _split(tmp_path, documents, tokenizer, max_document_tokens=300)
    ids = {p: [d.id for d in parts[p]] for p in PARTS}
    lengths = {d.id: len(tokenizer.encode(d.text)) for d in documents}
    assert set(ids["organic"]) <= set(ids["pool"])
    assert not set(ids["validation"]) & set(ids["pool"])
    if groups:
        groups_of = {p: {d.metadata["package"] for d in parts[p]} for p in PARTS}
        assert not groups_of["validation"] & groups_of["pool"]
    for part in PARTS:
        assert ids[part] == sorted(ids[part], key=lambda x: int(x[1:]))  # the corpus's order
        assert max(lengths[i] for i in ids[part]) <= 300
        assert counts[f"{part}_documents"] == len(ids[part])
        assert counts[f"{part}_tokens"] == sum(lengths[i] + 1 for i in ids[part])
    for part, asked in (("organic", 3000), ("pool", 20_000)):
        assert asked <= counts[f"{part}_tokens"] < asked + 301
    assert len(ids["validation"]) == 30
    assert counts["held_out_documents"] <= 46


def test_a_split_repeats_bit_for_bit_and_another_seed_draws_others(tmp_path, tokenizer):
    drawn = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        _split(tmp_path / name, _documents(600), tokenizer, seed=seed)
        drawn.append([(tmp_path / name / "out" / f"{p}.jsonl.zst").read_bytes() for p in PARTS])
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(drawn[0], drawn[2], strict=True))


def test_a_larger_draw_holds_the_smaller_one(tmp_path, tokenizer):
    kept = []
    for name, tokens in (("a", 2000), ("b", 5000)):
        (tmp_path / name).mkdir()
        _, parts = _split(tmp_path / name, _documents(600), tokenizer, organic_tokens=tokens)
        kept.append({d.id for d in parts["organic"]})
    assert kept[0] < kept[1]


def test_the_draw_is_uniform_over_the_corpus(tmp_path, tokenizer):
    _, parts = _split(tmp_path, _documents(900), tokenizer)
    places = np.array([int(d.id[1:]) for d in parts["pool"]])
    assert 350 < places.mean() < 550


def test_near_duplicates_of_training_documents_leave_validation(tmp_path, tokenizer):
    rng = random.Random(5)
    documents = _documents(400)
    documents = [  # each text twice, the second time in capitals with a few words before it
        twin
        for d in documents
        for twin in (
            d,
            Document(f"{d.id}000", f"{_text(rng, 2)}: {d.text.upper()}"),
        )
    ]
    counts, parts = _split(tmp_path, documents, tokenizer, pool_tokens=100_000)
    assert counts["validation_in_training"] > 20
    for left in parts["validation"]:
        assert not any(shares_shingle(left.text, right.text) for right in parts["pool"])
        others = (o for o in parts["validation"] if o.id != left.id)
        assert not any(shares_shingle(left.text, other.text) for other in others)


def test_short_duplicates_of_fewer_than_13_words_are_found():
    overlap = Overlap(["Ten little words", "ten other words", "Ten, LITTLE words 7"])
    overlap.observe(["something else", "ten little words!"])
    assert overlap.shares().tolist() == [1.0, 0.0, 1.0]
    assert overlap.repeats_earlier(0.2).tolist() == [False, False, True]


def test_overlap_is_the_share_of_distinct_shingles():
    words = [f"{a}{b}" for a in "abcdefg" for b in "hijklmn"]  # 49 words, 37 shingles
    overlap = Overlap([" ".join(words)])
    overlap.observe([" ".join(words[:20])])  # 8 of them
    assert overlap.shares()[0] == pytest.approx(8 / 37)
    assert Overlap([]).shares().shape == (0,)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_groups_are_held_out_whole_and_within_the_share(tmp_path_factory, sizes, seed):
    documents = [
        Document(f"{g}.{i}", "t", metadata={"package": str(g)} if g % 3 else {})
        for g, size in enumerate(sizes)
        for i in range(size)
    ]
    path = tmp_path_factory.mktemp("groups") / "x.jsonl"
    write_documents(path, documents)
    config = HoldOutConfig(validation_documents=20, seed=seed, held_out_share=0.2)
    try:
        held_out = choose_held_out(config, path)
    except DataError:
        assert len(documents) < 60 or len(sizes) < 6
        return
    held = [d for d in documents if held_out.holds(d)]
    assert len(held) == held_out.documents > 0
    for group in {d.metadata["package"] for d in held if d.metadata}:
        members = [d for d in documents if d.metadata.get("package") == group]
        assert all(held_out.holds(d) for d in members)
    assert len(held) <= min(30, 0.2 * len(documents)) + 2
    assert list(training_texts(path, held_out)) == ["t"] * (len(documents) - len(held))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pool_tokens": 10**9},
            r"has [\d,]+ tokens to train on, but pool_tokens is 1,000,000,000",
        ),
        ({"max_document_tokens": 5}, "over 5 tokens"),
        ({"organic_tokens": 30_000}, "smaller than organic_tokens"),
    ],
)
def test_a_corpus_too_small_fails_with_the_numbers_and_leaves_nothing(
    tmp_path, tokenizer, settings, message
):
    with pytest.raises(DataError, match=message):
        _split(tmp_path, _documents(600), tokenizer, **settings)
    out = tmp_path / "out"
    assert not out.exists() or not list(out.iterdir())


def test_corpora_that_cannot_be_held_out_from_are_data_errors(tmp_path, tokenizer):
    with pytest.raises(DataError, match="no documents"):
        _split(tmp_path, [], tokenizer)
    with pytest.raises(DataError, match="nothing can be held out of 200 documents in 2 groups"):
        _split(tmp_path, _documents(200, groups=2), tokenizer)
    _, parts = _split(tmp_path, _documents(600, groups=2), tokenizer, group=None)
    assert len(parts["validation"]) == 30


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_share_of_nearly_all_leaves_a_tiny_corpus_a_training_document(tmp_path, count):
    path = tmp_path / "tiny.jsonl"
    write_documents(path, _documents(count))
    held_out = choose_held_out(HoldOutConfig(held_out_share=0.99), path)
    assert held_out.documents == count - 1
    assert len(list(training_texts(path, held_out))) == 1


def test_wiki_articles_are_split(tmp_path, tokenizer, real_data):
    rows = read_documents(real_data / "corpus" / "wiki_en_min600.jsonl.gz")
    documents = [next(rows) for _ in range(1500)]
    counts, parts = _split(tmp_path, documents, tokenizer, max_document_tokens=1023)
    assert counts["organic_tokens"] >= 3000
    assert parts["validation"]


SCRIPT = """
import sys
from pathlib import Path
from megatron_synth.corpus import SplitConfig, choose_held_out, split_corpus, training_texts
from megatron_synth.tokens import train_tokenizer
source, out = sys.argv[1], Path(sys.argv[2])
config = SplitConfig(validation_documents=30, organic_tokens=3000, pool_tokens=100_000)
print("go", flush=True)
texts = training_texts(source, choose_held_out(config, source))
tokenizer = train_tokenizer(texts, 400, out / "tokenizer")
split_corpus(config, source, tokenizer, out / "split")
"""


def _files(folder):
    found = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


@pytest.mark.slow
def test_a_kill_at_any_time_leaves_only_whole_files_and_a_rerun_is_identical(tmp_path):
    write_documents(tmp_path / "in.jsonl.zst", _documents(2500))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "in.jsonl.zst")]
    with subprocess.Popen([*command, str(tmp_path / "whole")], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        started = time.monotonic()
        assert process.wait() == 0
    seconds = time.monotonic() - started
    whole = _files(tmp_path / "whole")
    assert len(whole) == 6
    rng = random.Random(6)
    killed = 0
    for _ in range(4):
        with subprocess.Popen([*command, str(tmp_path / "out")], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(rng.uniform(0, seconds))
            os.kill(process.pid, signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        found = _files(tmp_path / "out")
        assert all(whole[name] == content for name, content in found.items())
    assert killed >= 2
    subprocess.run([*command, str(tmp_path / "out")], check=True, capture_output=True)
    assert _files(tmp_path / "out") == whole
