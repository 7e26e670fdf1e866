import json
import re

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import (
    BYTE_FALLBACK,
    PLAIN,
    hugging_face_kinds,
    save_hugging_face,
    save_sentence_piece,
    save_tiktoken,
    texts_with,
)
from tokenizers import AddedToken

from megatron_synth.config import DataError
from megatron_synth.tokens import Tokenizer
from megatron_synth.tokens.special import Spellings

KINDS = ("separators", "reserved", "flags", "added")
ALL_KINDS = (*KINDS, "sentencepiece", "unigram", "tiktoken")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    root = tmp_path_factory.mktemp("kinds")
    paths = hugging_face_kinds(root)
    paths["sentencepiece"] = save_sentence_piece(root / "bpe.model", **BYTE_FALLBACK)
    paths["unigram"] = save_sentence_piece(root / "unigram.model", "unigram")
    paths["tiktoken"] = save_tiktoken(root / "mine.tiktoken")
    return {kind: Tokenizer.load(path) for kind, path in paths.items()}


def _oracle(text: str, spellings) -> list[str]:
    """Leftmost, then longest, by looking at every position."""
    found, at = [], 0
    while at < len(text):
        here = [s for s in spellings if text.startswith(s, at)]
        if here:
            found.append(max(here, key=len))
        at += len(found[-1]) if here else 1
    return found


@pytest.mark.parametrize("kind", ALL_KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_spelled_special_tokens_are_text_anywhere(kinds, kind, data):
    tokenizer = kinds[kind]
    text = data.draw(texts_with(tokenizer.special_spellings))
    ids = tokenizer.encode(text)
    assert not tokenizer.special_ids.intersection(ids)
    if kind not in ("unigram", "sentencepiece"):
        assert tokenizer.decode(ids) == text
    if kind == "sentencepiece":  # U+2581 is its blank
        assert tokenizer.decode(ids) == text.replace("\u2581", " ")


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_special_token_in_every_position(kinds, kind):
    tokenizer = kinds[kind]
    for spelling, number in tokenizer.special_spellings.items():
        for place in ("{}", "{} a", "a {}", "a{}c", " {} ", "\n{}\n", "{}{}", "é{}漢", "a. {}."):
            text = place.replace("{}", spelling)
            assert not tokenizer.special_ids.intersection(tokenizer.encode(text))
            assert tokenizer.count_special_spellings(text) == place.count("{}")
            assert tokenizer.find_special(text) == spelling
            kept = tokenizer.encode_batch([text], keep_special=True)[0]
            if spelling != "WORD" or place in ("{}", "{} a", "a {}", " {} ", "\n{}\n", "a. {}."):
                assert kept.count(number) == place.count("{}")


@pytest.mark.parametrize("kind", ALL_KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_kept_special_tokens_are_exactly_the_spelled_ones(kinds, kind, data):
    tokenizer = kinds[kind]
    spellings = set(tokenizer.special_spellings) - {"WORD"}  # a single word: see the test above
    text = data.draw(texts_with(spellings)).replace("WORD", "word").replace("<tool>", "")
    expected = [tokenizer.special_spellings[s] for s in _oracle(text, spellings)]
    kept = tokenizer.encode_batch([text], keep_special=True)[0]
    assert [i for i in kept if i in tokenizer.special_ids] == expected
    assert tokenizer.count_special_spellings(text) == len(expected)
    if not expected:
        assert kept == tokenizer.encode(text)


@given(
    spellings=st.sets(st.text("ab<|", min_size=1, max_size=4), min_size=1, max_size=20),
    text=st.text("ab<|", max_size=40),
)
def test_spellings_are_the_leftmost_longest(spellings, text):
    found = Spellings({spelling: i for i, spelling in enumerate(sorted(spellings))})
    expected = _oracle(text, spellings)
    assert found.count(text) == len(expected)
    assert found.find(text) == (expected[0] if expected else None)
    pieces = list(found.cut(text))
    spelled = sorted(spellings)
    assert "".join(p if isinstance(p, str) else spelled[p] for p in pieces) == text
    assert [spelled[p] for p in pieces if isinstance(p, int)] == expected
    assert "" not in pieces


def test_no_special_tokens_are_never_found():
    none = Spellings({})
    assert (none.find("x"), none.count("x"), list(none.cut("x")), list(none.cut(""))) == (
        None,
        0,
        ["x"],
        [],
    )


def test_an_added_token_that_is_not_special_stays_one_token(kinds):
    tokenizer = kinds["added"]
    ids = tokenizer.encode("a<tool>b")
    assert len([i for i in ids if tokenizer.decode([i]) == "<tool>"]) == 1
    assert "<tool>" not in tokenizer.special_spellings


def test_an_eos_that_the_file_does_not_flag_is_a_control_token_all_the_same(tmp_path):
    folder = save_hugging_face(tmp_path / "t", [], [AddedToken("</s>", **PLAIN)], eos="</s>")
    flags = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    assert not flags[0]["special"]
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.special_spellings == {"</s>": tokenizer.eos_id}
    assert tokenizer.eos_id not in tokenizer.encode("a</s>b")
    assert tokenizer.encode_batch(["a</s>b"], keep_special=True)[0].count(tokenizer.eos_id) == 1


def _unigram(folder):
    pieces = [("<unk>", 0.0), *(("▁" + c, -2.0) for c in "ab"), ("a", -1.0), ("b", -1.0)]
    model = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    model.add_special_tokens([AddedToken(s, special=True) for s in ("<unk>", "<end>")])
    folder.mkdir()
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    return folder


def test_the_token_for_unknown_text_is_no_control_token(tmp_path):
    tokenizer = Tokenizer.load(_unigram(tmp_path / "u"))
    assert tokenizer.encode("az")[-1] == 0
    assert tokenizer.special_spellings["<unk>"] == 0
    assert tokenizer.special_ids == {tokenizer.eos_id}


def test_a_model_that_spells_its_special_token_only_inside_a_text_is_refused(tmp_path):
    pieces = ["<unk>", "<", "s", ">", "▁", "<s", "<s>", "a", "▁<"]
    merges = [("▁", "<"), ("<", "s"), ("<s", ">")]
    model = tokenizers.Tokenizer(
        tokenizers.models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>")
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    model.add_special_tokens([AddedToken("<s>", special=True)])
    model.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<s>"}))
    with pytest.raises(DataError, match=re.escape("'a<s>b' becomes a control token")):
        Tokenizer.load(tmp_path)
