import json

import pytest
from hypothesis import given, settings
from tokenizer_kinds import BYTE_FALLBACK, TEXT, save_sentence_piece

from megatron_synth.config import DataError
from megatron_synth.tokens import SEPARATOR, Tokenizer

sentencepiece = pytest.importorskip("sentencepiece")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save_sentence_piece(tmp_path_factory.mktemp("sp") / "tokenizer.model", **BYTE_FALLBACK)


@pytest.fixture(scope="module")
def tokenizer(path):
    return Tokenizer.load(path)


@pytest.fixture(scope="module")
def library(path):
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


@settings(max_examples=100, deadline=None)
@given(text=TEXT)
def test_ids_are_those_of_the_library(tokenizer, library, text):
    assert tokenizer.encode(text) == library.encode(text)


def test_control_ids_and_vocabulary_are_the_models(tokenizer, library):
    assert (tokenizer.bos_id, tokenizer.eos_id) == (library.bos_id(), library.eos_id()) == (1, 2)
    assert tokenizer.vocab_size == library.get_piece_size()
    assert tokenizer.special_spellings == {"<s>": 1, "</s>": 2, SEPARATOR: 3, "<ctl>": 4}
    assert tokenizer.special_ids == {1, 2, 3, 4}  # not <unk>, 0
    assert tokenizer.separator_id == 3


def test_text_and_control_tokens_are_decoded(tokenizer):
    ids = [*tokenizer.encode("the fox"), 2, *tokenizer.encode("dog"), 10**6]
    assert tokenizer.decode(ids) in ("the foxdog", "the fox dog")
    assert tokenizer.decode(ids, keep_special=True) == "the fox</s>dog"


def test_folder_and_file_are_one_tokenizer(path, tokenizer):
    other = Tokenizer.load(path.parent)
    assert other.fingerprint == tokenizer.fingerprint
    assert Tokenizer.load(other.source).fingerprint == tokenizer.fingerprint


def test_other_models_have_other_fingerprints(tmp_path, tokenizer):
    other = Tokenizer.load(save_sentence_piece(tmp_path / "u.model", "unigram"))
    assert other.fingerprint != tokenizer.fingerprint


def test_unknown_text_of_a_model_without_byte_fallback_is_no_control_token(tmp_path):
    tokenizer = Tokenizer.load(save_sentence_piece(tmp_path / "u.model", "unigram"))
    ids = tokenizer.encode("Ⴀ")
    assert 0 in ids
    assert not tokenizer.special_ids.intersection(ids)


def test_a_config_beside_it_names_eos(tmp_path):
    path = save_sentence_piece(tmp_path / "tokenizer.model", eos_id=-1)
    with pytest.raises(DataError, match="no end-of-sentence"):
        Tokenizer.load(path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": {"content": "<ctl>"}}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_id == tokenizer.special_spellings["<ctl>"]
    config.write_text(json.dumps({"eos_token": "the"}))
    with pytest.raises(DataError, match="eos_token is 'the'"):
        Tokenizer.load(tmp_path)


def test_mistakes_are_data_errors(tmp_path, tokenizer):
    (tmp_path / "bad.model").write_bytes(b"no model")
    with pytest.raises(DataError, match="no SentencePiece model"):
        Tokenizer.load(tmp_path / "bad.model")
    (tmp_path / "empty.model").write_bytes(b"")
    with pytest.raises(DataError, match="no SentencePiece model"):
        Tokenizer.load(tmp_path / "empty.model")
    with pytest.raises(DataError, match="no such file"):
        Tokenizer.load(tmp_path / "absent.model")
    with pytest.raises(DataError, match="text 1 holds a lone surrogate"):
        tokenizer.encode_batch(["fine", "bad \ud800"])
    with pytest.raises(DataError, match="text 0 is bytes"):
        tokenizer.encode_batch([b"bytes"], keep_special=True)
