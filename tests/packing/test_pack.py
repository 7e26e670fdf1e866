"""Packed corpora against what stock Megatron-Core writes and reads."""

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.config import ConfigError, DataError
from megatron_synth.corpus import Document, read_documents, write_documents
from megatron_synth.packing import PackConfig, pack, paths_of, read_corpus_info
from megatron_synth.packing.indexed import IndexedWriter, token_dtype
from megatron_synth.runs import Progress
from megatron_synth.tokens import END_OF_TEXT, SEPARATOR, Tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=80)


@pytest.fixture(scope="module")
def megatron():
    from megatron.core.datasets import indexed_dataset

    return indexed_dataset


def _stock(megatron, tmp_path, documents, dtype):
    """The two files as stock Megatron-Core writes them, as bytes; a document is its sequences."""
    import torch

    stem = str(tmp_path / "stock")
    builder = megatron.IndexedDatasetBuilder(stem + ".bin", dtype=dtype)
    for sequences in documents:
        ids = [number for sequence in sequences for number in sequence]
        lengths = [len(sequence) for sequence in sequences]
        builder.add_document(torch.tensor(ids, dtype=torch.int64), lengths)
    builder.finalize(stem + ".idx")
    return (tmp_path / "stock.bin").read_bytes(), (tmp_path / "stock.idx").read_bytes()


def _as_megatron_lm(tokenizer, value):
    """Sequences of a document as Megatron-LM's preprocess_data.py --append-eod makes them."""
    encoded = [tokenizer.encode(text) for text in ([value] if isinstance(value, str) else value)]
    sequences = [ids for ids in encoded if ids]
    if sequences:
        sequences[-1] = [*sequences[-1], tokenizer.eos_id]
    return sequences


def _read(paths):
    return paths.bin.read_bytes(), paths.idx.read_bytes()


def _pack(tmp_path, texts, tokenizer, **settings):
    documents = [Document(f"d{i}", text) for i, text in enumerate(texts)]
    write_documents(tmp_path / "in.jsonl.zst", documents)
    config = PackConfig(**settings)
    return pack(tmp_path / "in.jsonl.zst", tokenizer, tmp_path / "c", config=config).info


def test_files_are_byte_identical_to_stock_megatrons(tmp_path, tokenizer, megatron):
    @settings(max_examples=50, deadline=None)
    @given(texts=st.lists(TEXT, min_size=1, max_size=12))
    def check(texts):
        info = _pack(tmp_path, texts, tokenizer)
        rows = [_as_megatron_lm(tokenizer, text) for text in texts]
        assert _read(paths_of(tmp_path / "c")) == _stock(megatron, tmp_path, rows, np.uint16)
        sizes = [len(sequence) for row in rows for sequence in row]
        assert (info.documents, info.tokens) == (len(rows), sum(sizes))
        assert info.longest == max(sizes, default=0)
        assert info.empty_documents == texts.count("")
        assert info.text_bytes == sum(len(t.encode()) for t in texts)

    check()


def test_several_keys_and_sentences_are_byte_identical_to_megatron_lms(
    tmp_path, tokenizer, megatron
):
    value = TEXT | st.lists(TEXT, max_size=4)

    @settings(max_examples=50, deadline=None)
    @given(rows=st.lists(st.fixed_dictionaries({"a": value, "b": value}), min_size=1, max_size=9))
    def check(rows):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / "in.jsonl").write_text("".join(lines))
        config = PackConfig(keys=("a", "b"), sentences=True)
        packed = pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c", config=config)
        assert list(packed.infos) == ["c_a_document", "c_b_document"]
        for key in "ab":
            expected = [_as_megatron_lm(tokenizer, row[key]) for row in rows]
            found = [(tmp_path / f"c_{key}_document.{e}").read_bytes() for e in ("bin", "idx")]
            assert tuple(found) == _stock(megatron, tmp_path, expected, np.uint16)

    check()


def test_without_end_of_text_no_id_is_added(tmp_path, tokenizer, megatron):
    _pack(tmp_path, ["a b", ""], tokenizer, end_of_text=False)
    expected = _stock(megatron, tmp_path, [[tokenizer.encode("a b")], []], np.uint16)
    assert _read(paths_of(tmp_path / "c")) == expected


def test_stock_megatron_reads_every_document_back(tmp_path, tokenizer, megatron):
    texts = ["plain", "", f"quotes {END_OF_TEXT}{SEPARATOR}", "é 漢 🦊\n\n  x"]
    info = _pack(tmp_path, texts, tokenizer)
    dataset = megatron.IndexedDataset(str(paths_of(tmp_path / "c").stem))
    assert info.documents == 4
    assert list(dataset.document_indices) == [0, 1, 1, 2, 3]  # an empty text has no sequence
    for i, text in enumerate(filter(None, texts)):
        ids = dataset[i].tolist()
        assert ids[-1] == tokenizer.eos_id
        assert not tokenizer.special_ids.intersection(ids[:-1])
        assert tokenizer.decode(ids[:-1]) == text
    assert info.special_spellings == 2


@pytest.mark.parametrize("vocab", [1, 4096, 65_499, 65_500, 65_501, 65_536, 65_537, 128_256])
def test_the_dtype_is_the_one_that_megatron_chooses(megatron, vocab):
    assert token_dtype(vocab) == np.dtype(megatron.DType.optimal_dtype(vocab))


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 100_000), min_size=1, max_size=9), max_size=9))
def test_int32_files_in_several_appends_equal_stock(tmp_path_factory, megatron, rows):
    folder = tmp_path_factory.mktemp("int32")
    with IndexedWriter(folder / "o.bin", folder / "o.idx", np.int32) as writer:
        for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            ids = np.array([n for row in half for n in row], dtype=np.int64)
            writer.add(ids, [len(row) for row in half])
        writer.finish()
    ours = ((folder / "o.bin").read_bytes(), (folder / "o.idx").read_bytes())
    assert ours == _stock(megatron, folder, [[row] for row in rows], np.int32)


def test_an_index_longer_than_a_block_equals_stock(tmp_path, megatron, monkeypatch):
    from megatron_synth.packing import indexed

    monkeypatch.setattr(indexed, "_BLOCK", 7)
    rows = [[i] * (i % 5 + 1) for i in range(50)]
    with IndexedWriter(tmp_path / "o.bin", tmp_path / "o.idx", np.uint16) as writer:
        writer.add(np.concatenate(rows), [len(row) for row in rows])
        writer.finish()
    assert (tmp_path / "o.idx").read_bytes() == _stock(
        megatron, tmp_path, [[r] for r in rows], np.uint16
    )[1]


def test_the_side_table_names_document_i(tmp_path, tokenizer):
    documents = [
        Document(f"d{i}", f"text {i}", source_id=f"s{i}" if i % 2 else None, method="sbp")
        for i in range(70)
    ]
    write_documents(tmp_path / "in.parquet", documents)
    pack(tmp_path / "in.parquet", tokenizer, tmp_path / "c")
    table = pq.read_table(paths_of(tmp_path / "c").provenance).to_pylist()
    assert table == [{"id": d.id, "source_id": d.source_id, "method": d.method} for d in documents]


def test_the_side_table_can_be_left_out(tmp_path, tokenizer):
    _pack(tmp_path, ["a"], tokenizer, provenance=False)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [*(f"c_text_document.{e}" for e in ("bin", "idx", "json")), "in.jsonl.zst"]


def test_the_info_is_read_back_and_follows_the_content(tmp_path, tokenizer):
    info = _pack(tmp_path, ["a", "b"], tokenizer)
    assert (
        read_corpus_info(tmp_path / "c") == info == read_corpus_info(tmp_path / "c_text_document")
    )
    assert info.tokenizer == tokenizer.fingerprint
    assert _pack(tmp_path, ["a", "b"], tokenizer).content_hash == info.content_hash
    assert _pack(tmp_path, ["b", "a"], tokenizer).content_hash != info.content_hash


def _with_bos(tokenizer, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tokenizer.folder / name).read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": SEPARATOR}))
    return Tokenizer.load(tmp_path)


def test_bos_stands_before_each_document_where_asked(tmp_path, tokenizer, megatron):
    with pytest.raises(DataError, match="no BOS"):
        _pack(tmp_path, ["a"], tokenizer, beginning_of_text=True)
    other = _with_bos(tokenizer, tmp_path)
    info = _pack(tmp_path, ["a", "b"], other, beginning_of_text=True)
    dataset = megatron.IndexedDataset(str(paths_of(tmp_path / "c").stem))
    assert dataset[1].tolist() == [1, *other.encode("b"), 0]
    assert (info.bos_id, info.tokens) == (1, 6)


def test_mistakes_are_data_errors_and_leave_no_corpus(tmp_path, tokenizer):
    with pytest.raises(DataError, match="no documents to pack"):
        _pack(tmp_path, [], tokenizer)
    with pytest.raises(DataError, match="no such file"):
        pack(tmp_path / "absent.jsonl", tokenizer, tmp_path / "c")
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": 3}\n')
    with pytest.raises(DataError, match=r"1 of 2 rows are no documents .* line 2"):
        pack(tmp_path / "bad.jsonl", tokenizer, tmp_path / "c")
    with pytest.raises(DataError, match="no such packed corpus"):
        read_corpus_info(tmp_path / "c")
    assert not list(tmp_path.glob("c_text_document*"))


def test_an_encoder_that_is_none_is_a_config_error_before_anything_is_made(tmp_path, tokenizer):
    write_documents(tmp_path / "in.jsonl", [Document("a", "alpha")])
    with pytest.raises(ConfigError, match="encoder is 'fast'"):
        pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "o" / "c", encoder="fast")
    assert not (tmp_path / "o").exists()


def test_progress_counts_the_bytes_read(tmp_path, tokenizer):
    write_documents(tmp_path / "in.jsonl", [Document(str(i), "alpha " * 50) for i in range(500)])
    progress = Progress()
    pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c", progress)
    assert progress.state.done == pytest.approx(progress.state.total)
    assert progress.state.unit == "MB"


def test_the_room_imports_no_torch():
    code = "import sys, megatron_synth.packing; print({'torch', 'pyarrow'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_real_text_survives(tmp_path, tokenizer, real_data, megatron):
    source = real_data / "corpus" / "asp_en.jsonl.gz"
    info = pack(source, tokenizer, tmp_path / "c").info
    dataset = megatron.IndexedDataset(str(paths_of(tmp_path / "c").stem))
    for i, document in enumerate(read_documents(source)):
        assert tokenizer.decode(dataset[i].tolist()[:-1]) == document.text
    assert info.documents == i + 1
