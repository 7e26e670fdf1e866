"""Selections and orders of documents, read from files: what they count, what is refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_synth.blending import corpus_size
from megatron_synth.blending.sizes import measure
from megatron_synth.blending.sources import SourceConfig
from megatron_synth.config import ConfigError, DataError
from megatron_synth.corpus import Document, write_documents
from megatron_synth.packing import pack
from megatron_synth.packing.reader import IndexedReader
from megatron_synth.tokens import train_tokenizer


@pytest.fixture(autouse=True)
def index_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MEGATRON_SYNTH_INDEX", str(tmp_path / "index"))


@pytest.fixture
def selected(make_corpus, tmp_path):
    """selected(file, **rule) -> size of a corpus of 4 documents of 10, 20, 30 and 40 tokens."""
    prefix = make_corpus("c", [10, 20, 30, 40])

    def selected(content, suffix=".npy", order=None, **rule):
        path = tmp_path / f"scores{suffix}"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, pa.Table):
            pq.write_table(content, path)
        elif content is not None:
            np.save(path, np.array(content))
        select = {"file": path, **rule}
        return measure(SourceConfig(data=prefix, select=select, order=order), where="c")

    return selected


@pytest.mark.parametrize(
    ("scores", "rule", "tokens"),
    [
        ([1, 2, 3, 4], {"top": 0.5}, 70),
        ([1, 2, 3, 4], {"top": 0.74}, 70),  # rounded down to whole documents
        ([4, 3, 2, 1], {"top": 0.5}, 30),
        ([1, 1, 1, 1], {"top": 0.5}, 30),  # ties: the earlier documents
        ([1, 2, 3, 4], {"top": 1}, 100),
        ([1, 2, 3, 4], {"top": 0.7, "of": "tokens"}, 70),
        ([1, 2, 3, 4], {"top": 0.69, "of": "tokens"}, 40),
        ([-1, 0, 1e-9, 2], {"above": 0}, 70),
        ([0.5, -0.5, 0.5, -0.5], {"above": -0.5}, 40),
        ([True, False, False, True], {}, 50),
    ],
)
def test_a_selection_counts_its_documents_alone(selected, scores, rule, tokens):
    size = selected(scores, **rule)
    assert size.tokens == tokens
    assert size.documents == {100: 4, 70: 2, 30: 2, 40: 2 if "above" in rule else 1, 50: 2}[tokens]


def test_a_selection_has_a_name_of_its_own(selected, make_corpus, tmp_path):
    whole = corpus_size(tmp_path / "c").content_hash
    hashes = [
        whole,
        selected([1, 2, 3, 4], top=0.5).content_hash,
        selected([1, 2, 3, 4], top=0.5, of="tokens").content_hash,
        selected([1, 2, 3, 5], top=0.5).content_hash,
        selected([1, 2, 3, 4], above=2).content_hash,
    ]
    assert len(set(hashes)) == len(hashes)
    assert selected([1, 2, 3, 4], top=0.5).content_hash == hashes[1]


def side_table(tmp_path, ids):
    pq.write_table(pa.table({"id": ids}), tmp_path / "c_text_document.provenance.parquet")


@pytest.mark.parametrize("as_type", [pa.string(), pa.large_string(), None])
def test_scores_of_a_table_are_matched_by_id(selected, tmp_path, as_type):
    side_table(tmp_path, ["a", "b", "c", "d"])
    ids = pa.array(["d", "x", "b", "a", "c"], as_type or pa.string())
    table = pa.table(
        {
            "id": ids if as_type is not None else ids.dictionary_encode(),
            "score": [4.0, 99.0, 2.0, 1.0, 3.0],
            "other": [1, 99, 3, 4, 2],
        }
    )
    assert selected(table, ".parquet", top=0.5).tokens == 70
    assert selected(table, ".parquet", top=0.5, column="other").tokens == 30


IDS = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("table", "rule", "words"),
    [
        ({"id": IDS[:3], "score": [1.0, 2, 3]}, {}, ["1 of 4 documents", "'d'"]),
        ({"id": [*IDS, "a"], "score": [1.0, 2, 3, 4, 5]}, {}, ["several scores"]),
        ({"id": IDS, "score": [1.0, None, 3, 4]}, {}, ["1 of 4 scores are NaN"]),
        ({"id": IDS, "score": ["1", "2", "3", "x"]}, {}, ["'score'", "not numbers"]),
        ({"id": IDS, "score": [[1.0]] * 4}, {}, ["'score'", "not numbers"]),
        ({"id": [1, 2, 3, 4], "score": [1.0, 2, 3, 4]}, {}, ["'id'", "int64", "side table"]),
        ({"id": IDS, "score": [1.0, 2, 3, 4]}, {"column": "scores"}, ["'scores'"]),
        ({"name": IDS, "score": [1.0, 2, 3, 4]}, {}, ["'id'"]),
    ],
)
def test_a_table_of_scores_that_does_not_fit_is_refused(selected, tmp_path, table, rule, words):
    side_table(tmp_path, IDS)
    with pytest.raises(DataError) as caught:
        selected(pa.table(table), ".parquet", top=0.5, **rule)
    for word in ("scores.parquet", *words):
        assert word in str(caught.value)


def test_scores_are_matched_with_the_ids_that_packing_wrote(tmp_path):
    texts = [f"document {i} " + "word " * (i + 1) for i in range(30)]
    tokenizer = train_tokenizer(texts, 270, tmp_path / "tokenizer")
    write_documents(tmp_path / "in.jsonl", [Document(f"d{i}", t) for i, t in enumerate(texts)])
    pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "packed")
    backwards = [f"d{i}" for i in reversed(range(30))]
    pq.write_table(pa.table({"id": backwards, "score": range(30)}), tmp_path / "s.parquet")
    select = {"file": tmp_path / "s.parquet", "top": 0.2}
    size = measure(SourceConfig.model_validate({"data": tmp_path / "packed", "select": select}))
    lengths = IndexedReader(tmp_path / "packed").lengths[:6]  # the first six have the best scores
    assert (size.documents, size.tokens) == (6, int(lengths.sum()))
    assert size.tokenizer == tokenizer.fingerprint


def test_the_side_table_lies_beside_a_dataset_of_any_name(tmp_path, write_corpus):
    write_corpus(tmp_path / "c", [[1, 2, 0], [3, 0]])
    for name in ("c_body_document", "c"):
        for ending in ("bin", "idx"):
            source = tmp_path / f"c_text_document.{ending}"
            (tmp_path / f"{name}.{ending}").write_bytes(source.read_bytes())
        pq.write_table(pa.table({"id": ["x", "y"]}), tmp_path / f"{name}.provenance.parquet")
        pq.write_table(pa.table({"id": ["y", "x"], "score": [0, 1]}), tmp_path / "s.parquet")
        select = {"file": tmp_path / "s.parquet", "above": 0}
        source = SourceConfig.model_validate({"data": tmp_path / name, "select": select})
        assert measure(source).tokens == 3


def test_a_damaged_table_of_scores_is_refused(selected, tmp_path):
    side_table(tmp_path, IDS)
    with pytest.raises(DataError, match=r"scores\.parquet: its column 'id' cannot be read"):
        selected(b"PAR1 and no more", ".parquet", top=0.5)


def test_scores_by_id_need_a_side_table_of_this_corpus(selected, tmp_path):
    table = pa.table({"id": IDS, "score": [1.0, 2, 3, 4]})
    with pytest.raises(DataError, match="no side table"):
        selected(table, ".parquet", top=0.5)
    side_table(tmp_path, IDS[:2])
    with pytest.raises(DataError, match="2 rows, the corpus 4 documents"):
        selected(table, ".parquet", top=0.5)


@pytest.mark.parametrize(
    ("content", "suffix", "rule", "kind", "message"),
    [
        (None, ".npy", {"top": 0.5}, DataError, "no such file"),
        (None, ".parquet", {"top": 0.5}, DataError, "no such file"),
        (b"text", ".npy", {"top": 0.5}, DataError, "not a .npy file of numbers"),
        (b"", ".npy", {"top": 0.5}, DataError, "not a .npy file of numbers"),
        ([1, 2, 3], ".npy", {"top": 0.5}, DataError, r"int64\[3\]; the corpus has 4 documents"),
        ([[1, 2, 3, 4]], ".npy", {"top": 0.5}, DataError, "the corpus has 4 documents"),
        (["a"] * 4, ".npy", {"top": 0.5}, DataError, "the corpus has 4 documents"),
        ([1, np.nan, 2, 3], ".npy", {"above": 0}, DataError, "1 of 4 scores are NaN"),
        ([1, 2, 3, 4], ".npy", {"above": 9}, ConfigError, "selects no document"),
        ([1, 2, 3, 4], ".npy", {"top": 0.1}, ConfigError, "selects no document"),
        ([False] * 4, ".npy", {}, ConfigError, "selects no document"),
        ([True] * 4, ".npy", {"top": 0.5}, ConfigError, "is a mask"),
        ([1.0, 2, 3, 4], ".npy", {}, ConfigError, "float64, not a mask"),
    ],
)
def test_a_selection_that_cannot_be_made_is_refused(selected, content, suffix, rule, kind, message):
    with pytest.raises(kind, match=message):
        selected(content, suffix, **rule)


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_an_order_keeps_the_counts_and_changes_the_name(make_corpus, tmp_path, suffix):
    prefix = make_corpus("c", [10, 20, 30, 40])
    path = tmp_path / f"order{suffix}"
    order = np.array([3, 1, 0, 2])
    if suffix == ".npy":
        np.save(path, order)
    else:
        pq.write_table(pa.table({"document": order}), path)
    size = measure(SourceConfig(data=prefix, order=path))
    plain = corpus_size(prefix)
    assert (size.tokens, size.documents) == (plain.tokens, plain.documents)
    assert size.content_hash != plain.content_hash


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 1, 2], "3 numbers, 3 of the documents named"),
        ([0, 1, 2, 2], "4 numbers, 3 of the documents named"),
        ([1, 2, 3, 4], "1 to 4"),
        ([-1, 0, 1, 2], "-1 to 2"),
        ([0.0, 1, 2, 3], "float64.*not a list of numbers"),
        ([[0, 1], [2, 3]], "not a list of numbers"),
        ([], "float64"),
    ],
)
def test_an_order_of_other_documents_is_refused(make_corpus, tmp_path, order, message):
    prefix = make_corpus("c", [10, 20, 30, 40])
    np.save(tmp_path / "order.npy", np.array(order))
    with pytest.raises(DataError, match=message):
        measure(SourceConfig(data=prefix, order=tmp_path / "order.npy"))


def test_an_order_file_that_is_none_is_refused(make_corpus, tmp_path):
    prefix = make_corpus("c", [10, 20, 30, 40])
    (tmp_path / "o.npy").write_text("0 1 2 3")
    pq.write_table(pa.table({"doc": [0, 1, 2, 3]}), tmp_path / "o.parquet")
    for name, message in (("o.npy", "not a .npy"), ("o.parquet", "'document'"), ("x", "no such")):
        with pytest.raises(DataError, match=message):
            measure(SourceConfig(data=prefix, order=tmp_path / name))
