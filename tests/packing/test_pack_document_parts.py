"""A document of several texts is packed as one document: each text a sequence with its own EOS."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.blending import BlendConfig, BlendedStreams, corpus_size, solve
from megatron_synth.corpus import Document, read_documents, write_documents
from megatron_synth.corpus.document import PART_BREAK
from megatron_synth.packing import PackConfig, pack
from megatron_synth.packing.reader import IndexedReader
from megatron_synth.tokens import END_OF_TEXT

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
PARTS = st.lists(TEXT, min_size=1, max_size=5)


def _of_parts(name, parts):
    return Document(name, PART_BREAK.join(parts), parts=tuple(parts))


def _sequences(reader, number):
    """The ids of each sequence of a document."""
    first, end = reader.borders[number], reader.borders[number + 1]
    ids, place = reader.document(number).tolist(), 0
    for length in reader.lengths[first:end].tolist():
        yield ids[place : place + length]
        place += length
    assert place == len(ids)


@pytest.mark.parametrize("name", ["in.jsonl", "in.parquet"])
@pytest.mark.parametrize("encoder", ["auto", "tokenizer"])
def test_parts_become_sequences_in_order_each_with_its_own_eos(tmp_path, tokenizer, name, encoder):
    @settings(max_examples=15, deadline=None)
    @given(rows=st.lists(TEXT | PARTS, min_size=1, max_size=8))
    def check(rows):
        documents = [
            Document(f"d{i}", row) if isinstance(row, str) else _of_parts(f"d{i}", row)
            for i, row in enumerate(rows)
        ]
        write_documents(tmp_path / name, documents)
        assert list(read_documents(tmp_path / name)) == documents
        info = pack(tmp_path / name, tokenizer, tmp_path / "c", encoder=encoder).info
        reader = IndexedReader(tmp_path / "c")
        assert reader.documents == info.documents == len(rows)
        for number, row in enumerate(rows):
            texts = [row] if isinstance(row, str) else row
            encoded = [tokenizer.encode(text) for text in texts]
            expected = [[*ids, tokenizer.eos_id] for ids in encoded if ids]
            assert list(_sequences(reader, number)) == expected

    check()


def test_beginning_of_text_stands_before_every_part(tmp_path, tokenizer):
    write_documents(tmp_path / "in.jsonl", [_of_parts("d", ["alpha", "beta"])])
    config = PackConfig(end_of_text=False)
    pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c", config=config)
    plain = [tokenizer.encode("alpha"), tokenizer.encode("beta")]
    assert list(_sequences(IndexedReader(tmp_path / "c"), 0)) == plain
    tokenizer.bos_id = tokenizer.separator_id
    try:
        config = PackConfig(beginning_of_text=True)
        pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c", config=config)
    finally:
        tokenizer.bos_id = None
    begun = [[tokenizer.separator_id, *ids, tokenizer.eos_id] for ids in plain]
    assert list(_sequences(IndexedReader(tmp_path / "c"), 0)) == begun


def test_a_special_spelling_inside_a_part_stays_text(tmp_path, tokenizer):
    spelling = _of_parts("d", ["alpha", f"a {END_OF_TEXT} b"])
    write_documents(tmp_path / "in.jsonl", [spelling, _of_parts("e", ["alpha", "beta"])])
    info = pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c").info
    assert info.special_spellings == 1
    ids = IndexedReader(tmp_path / "c").document(0).tolist()
    assert ids.count(tokenizer.eos_id) == 2
    rejected = pack(
        tmp_path / "in.jsonl",
        tokenizer,
        tmp_path / "r",
        config=PackConfig(special_tokens="reject", quarantine_limit=1),
    )
    assert (rejected.info.documents, rejected.rejected) == (1, 1)


@pytest.mark.parametrize(
    "parts", [["alpha"], ["alpha", "gamma"], [], ["alpha", 3], "alpha", {"a": 1}, 7]
)
def test_a_column_that_is_named_parts_but_is_not_the_text_changes_nothing(
    tmp_path, tokenizer, parts
):
    row = {"id": "d", "text": "alpha beta"}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "plain")
    (tmp_path / "in.jsonl").write_text(json.dumps({**row, "parts": parts}) + "\n")
    pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c")
    for ending in ("bin", "idx", "provenance.parquet"):
        names = [tmp_path / f"{stem}_text_document.{ending}" for stem in ("plain", "c")]
        assert names[0].read_bytes() == names[1].read_bytes()
    (document,) = read_documents(tmp_path / "in.jsonl")
    assert document.parts is None
    assert document.metadata == {"parts": parts}


def test_sentences_keep_megatron_lms_meaning_whatever_else_a_row_has(tmp_path, tokenizer):
    rows = [{"text": ["alpha", "beta"]}, {"text": "a\n\nb", "parts": ["a", "b"]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c", config=PackConfig(sentences=True))
    reader = IndexedReader(tmp_path / "c")
    eos = tokenizer.eos_id
    expected = [tokenizer.encode("alpha"), [*tokenizer.encode("beta"), eos]]
    assert list(_sequences(reader, 0)) == expected
    assert list(_sequences(reader, 1)) == [[*tokenizer.encode("a\n\nb"), eos]]


def test_parts_stand_beside_other_keys(tmp_path, tokenizer):
    row = {"title": "gamma", "text": "alpha\n\nbeta", "parts": ["alpha", "beta"]}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    config = PackConfig(keys=("title", "text"))
    pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c", config=config)
    counts = [len(IndexedReader(tmp_path / f"c_{key}_document").lengths) for key in config.keys]
    assert counts == [1, 2]


@pytest.mark.parametrize("reshuffle", [True, False])
def test_blending_permutes_documents_and_keeps_the_order_inside_each(
    tmp_path, tokenizer, reshuffle
):
    megadocs = [[f"alpha {i} {'beta ' * (i % 4)}{j}" for j in range(1 + i % 5)] for i in range(40)]
    documents = [_of_parts(f"d{i}", parts) for i, parts in enumerate(megadocs)]
    write_documents(tmp_path / "in.jsonl", documents)
    pack(tmp_path / "in.jsonl", tokenizer, tmp_path / "c")
    whole = [
        tuple(i for part in parts for i in (*tokenizer.encode(part), tokenizer.eos_id))
        for parts in megadocs
    ]
    tokens = sum(map(len, whole))
    stem = tmp_path / "c_text_document"
    size = corpus_size(stem)
    assert (size.documents, size.tokens) == (len(megadocs), tokens)
    # One window an epoch holds the whole stream but its last token.
    settings_of_blend = {
        "sequence_length": tokens - 1,
        "global_batch_size": 1,
        "seed": 3,
        "corpora": {"c": {"epochs": 2, "reshuffle": reshuffle}},
    }
    plan = solve(BlendConfig.model_validate(settings_of_blend), {"c": size})
    streams = BlendedStreams(plan, {"c": stem})
    orders = [_order_of(streams[epoch], whole) for epoch in range(2)]
    for order in orders:
        assert sorted(order) == list(range(len(whole)))
        assert order != sorted(order)
    assert (orders[0] == orders[1]) is not reshuffle


def _order_of(sample, documents):
    """Numbers of the documents that make up a window, each whole and unbroken."""
    ids = [*sample["tokens"].tolist(), int(np.asarray(sample["labels"])[-1])]
    order, place = [], 0
    while place < len(ids):
        fitting = [
            number
            for number, document in enumerate(documents)
            if number not in order and tuple(ids[place : place + len(document)]) == document
        ]
        assert fitting
        number = max(fitting, key=lambda n: len(documents[n]))
        order.append(number)
        place += len(documents[number])
    return order
