"""The seed store gives back every document's text, name and length."""

import pytest

from megatron_synth.config import DataError
from megatron_synth.corpus import Document
from megatron_synth.synthesis.seeds import SeedStore, build_seeds


def test_texts_names_and_lengths_come_back(documents, tokenizer, seeds):
    assert len(seeds) == len(documents)
    for row, document in enumerate(documents):
        assert seeds.name(row) == document.id
        assert seeds.text(row) == document.text
        assert seeds.lengths[row] == len(tokenizer.encode(document.text))


def test_names_and_texts_beyond_ascii_and_the_spelling_of_control_tokens(tokenizer, tmp_path):
    text = "<|endoftext|> naïve 日本 <|separator|>"
    store = build_seeds([Document("ключ", text)], tokenizer, tmp_path / "seeds")
    assert store.name(0) == "ключ"
    assert store.text(0) == text


def test_a_finished_store_is_opened_and_an_unfinished_one_made_anew(documents, tokenizer, tmp_path):
    folder = tmp_path / "seeds"
    first = build_seeds(documents, tokenizer, folder)
    again = build_seeds(iter(()), tokenizer, folder)
    assert again.fingerprint == first.fingerprint
    (folder / "seeds.json").unlink()
    (folder / "texts.npy").write_bytes(b"half")
    (tmp_path / "seeds.tmp").mkdir()
    assert build_seeds(documents, tokenizer, folder).fingerprint == first.fingerprint


def test_the_fingerprint_depends_on_texts_and_names(documents, tokenizer, tmp_path):
    stores = [
        build_seeds([Document(name, text)], tokenizer, tmp_path / str(n))
        for n, (name, text) in enumerate([("a", "x y"), ("b", "x y"), ("a", "x z")])
    ]
    assert len({store.fingerprint for store in stores}) == 3


def test_documents_without_text_are_left_out(tokenizer, tmp_path):
    store = build_seeds([Document("a", ""), Document("b", "text")], tokenizer, tmp_path / "s")
    assert [store.name(row) for row in range(len(store))] == ["b"]


def test_no_documents_is_a_clear_error(tokenizer, tmp_path):
    with pytest.raises(DataError, match="no seed documents"):
        build_seeds([Document("a", "")], tokenizer, tmp_path / "seeds")
    assert not (tmp_path / "seeds").exists()
    assert isinstance(build_seeds([Document("a", "b")], tokenizer, tmp_path / "seeds"), SeedStore)
