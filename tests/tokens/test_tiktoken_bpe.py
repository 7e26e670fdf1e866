import hashlib
import json
import shutil

import pytest
from hypothesis import given, settings
from tokenizer_kinds import TEXT, save_tiktoken

from megatron_synth.config import DataError
from megatron_synth.tokens import Tokenizer
from megatron_synth.tokens.tiktoken_encodings import ENCODINGS, PATTERNS

tiktoken = pytest.importorskip("tiktoken")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save_tiktoken(tmp_path_factory.mktemp("tik") / "mine.tiktoken")


@pytest.fixture(scope="module")
def tokenizer(path):
    return Tokenizer.load(path)


@settings(max_examples=100, deadline=None)
@given(text=TEXT)
def test_any_text_survives_and_ids_are_the_librarys(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text) == tokenizer._model.encode_ordinary(text)


def test_merges_are_used(tokenizer):
    assert len(tokenizer.encode(" the again 123")) < len(" the again 123")


def test_control_ids_and_vocabulary(tokenizer):
    assert (tokenizer.eos_id, tokenizer.separator_id, tokenizer.bos_id) == (300, 301, None)
    assert tokenizer.vocab_size == 306 == tokenizer._model.n_vocab
    assert tokenizer.special_ids == {300, 301, 305}


def test_gaps_and_padded_ids_leave_nothing_behind(tokenizer):
    ids = [*tokenizer.encode("a"), 303, 300, 99999, -1, *tokenizer.encode("b")]
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode(ids, keep_special=True) == "a<|endoftext|>b"


def test_fingerprint_follows_ranks_and_settings_not_the_place(path, tokenizer, tmp_path):
    for suffix in (".tiktoken", ".json"):
        shutil.copy(path.with_suffix(suffix), tmp_path / f"other{suffix}")
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    other = save_tiktoken(tmp_path / "other.tiktoken", pattern="r50k_base")
    assert Tokenizer.load(other).fingerprint != tokenizer.fingerprint
    beginning = save_tiktoken(tmp_path / "other.tiktoken", bos_token="<|x|>")
    assert Tokenizer.load(beginning).bos_id == 305


def test_a_published_name_needs_no_json(path, tmp_path):
    shutil.copy(path, tmp_path / "cl100k_base.tiktoken")
    tokenizer = Tokenizer.load(tmp_path / "cl100k_base.tiktoken")
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (100257, 100277)


def test_a_published_encoding_comes_from_the_cache(path, tmp_path, monkeypatch):
    url = "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken"
    shutil.copy(path, tmp_path / hashlib.sha1(url.encode()).hexdigest())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    for name in ("gpt2", "r50k_base"):
        tokenizer = Tokenizer.load(name)
        assert (tokenizer.eos_id, tokenizer.source) == (50256, name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="not in tiktoken's cache"):
        Tokenizer.load("cl100k_base")


def test_expressions_are_those_of_the_package(monkeypatch):
    public = pytest.importorskip("tiktoken_ext.openai_public")
    monkeypatch.setattr(public, "load_tiktoken_bpe", lambda *_, **__: {})
    monkeypatch.setattr(public, "data_gym_to_mergeable_bpe_ranks", lambda **_: {})
    for name, encoding in ENCODINGS.items():
        told = getattr(public, name)()
        assert told["pat_str"] == PATTERNS[encoding.pattern]
        assert told["special_tokens"] == encoding.specials


def _rewrite(path, **changes):
    beside = path.with_suffix(".json")
    told = {**json.loads(beside.read_text()), **changes}
    beside.write_text(json.dumps({k: v for k, v in told.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": None}, "must say how"),
        ({"special_tokens": {"<|endoftext|>": "300"}}, "must say how"),
        ({"unknown": 1}, "must say how"),
        ({"special_tokens": {}}, "eos_token"),
        ({"special_tokens": {"<|endoftext|>": 5}}, "is a rank of the file too"),
        ({"special_tokens": {"<|endoftext|>": 300, "<|x|>": 300}}, "distinct"),
        ({"bos_token": "<|absent|>"}, "bos_token"),
        ({"pattern": "(["}, "expression is not valid"),
    ],
)
def test_wrong_settings_are_data_errors(tmp_path, changes, message):
    path = save_tiktoken(tmp_path / "mine.tiktoken")
    _rewrite(path, **changes)
    with pytest.raises(DataError, match=message):
        Tokenizer.load(path)


def test_damaged_files_are_data_errors(tmp_path, path, tokenizer):
    for content, message in (
        ("IQ== 0\n!! x\n", "line 2 is not"),
        ("IQ== 0\n", "255 of the 256 bytes"),
        (path.read_text() + "dGhpcw== 3\n", "not distinct"),
    ):
        bad = save_tiktoken(tmp_path / "bad.tiktoken")
        bad.write_text(content)
        with pytest.raises(DataError, match=message):
            Tokenizer.load(bad)
    shutil.copy(path, tmp_path / "alone.tiktoken")
    with pytest.raises(DataError, match="several rank files"):
        Tokenizer.load(tmp_path)
    with pytest.raises(DataError, match="neither its split expression"):
        Tokenizer.load(tmp_path / "alone.tiktoken")
    with pytest.raises(DataError, match="text 0 holds a lone surrogate"):
        tokenizer.encode("\ud83d")
