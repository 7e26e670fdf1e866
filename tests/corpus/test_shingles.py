"""Shingles against a plain Python definition of the same thing."""

import string
import sys
import unicodedata
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.corpus import (
    batch_shingles,
    read_documents,
    repeats_shingle,
    shares_shingle,
    shingle_hashes,
)
from megatron_synth.corpus import shingles as shingles_module
from megatron_synth.corpus.passages import word_spans

WORDS = st.lists(st.sampled_from(["a", "b", "ä", "to", "Too", "x1y", "漢", "-", "é!"]), max_size=40)
ANY_TEXT = st.text(
    st.characters() | st.sampled_from("漢字かガーｶﾞกิเำລາမြန်ខ្មែរ\u3099\ufe00\u0301\x1f a"),
    max_size=120,
)


UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR")


def stands_alone(char: str) -> bool:
    """Whether a letter is a word by itself."""
    name = unicodedata.name(char, "").removeprefix("HALFWIDTH ")
    return unicodedata.category(char)[0] == "L" and name.startswith(UNSPACED)


def plain_words(text: str) -> list[str]:
    spaced, alone = "", False
    for c in text.lower():
        kind = unicodedata.category(c)[0]
        if alone and kind != "M":
            spaced += " "
            alone = False
        if stands_alone(c):
            spaced += " "
            alone = True
        letter = c in string.ascii_letters if c.isascii() else kind in "LM"
        spaced += c if letter else " "
    return spaced.split()


def plain_shingles(text: str, size: int = 13) -> list[tuple[str, ...]]:
    words = plain_words(text)
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


@given(text=ANY_TEXT)
def test_normalised_words_are_lower_case_letters_only(text):
    assert shingles_module.normalise(text).split() == plain_words(text)


@settings(max_examples=300)
@given(texts=st.lists(WORDS.map(" ".join) | ANY_TEXT, max_size=6))
def test_equal_shingles_have_equal_hashes_and_others_do_not(texts):
    sets = batch_shingles(texts)
    assert len(sets) == len(texts)
    plain = [plain_shingles(text) for text in texts]
    assert [len(sets[i]) for i in range(len(texts))] == [len(p) for p in plain]
    everything = [s for p in plain for s in p]
    pairs = {(shingle, int(h)) for shingle, h in zip(everything, sets.hashes, strict=True)}
    assert len(pairs) == len(set(everything)) == len({h for _, h in pairs})


@given(texts=st.lists(ANY_TEXT, max_size=5))
def test_a_batch_has_the_hashes_of_its_texts_alone(texts):
    sets = batch_shingles(texts, size=2)
    for index, text in enumerate(texts):
        assert np.array_equal(sets[index], batch_shingles([text], size=2).hashes)


def test_blocks_do_not_change_the_hashes(monkeypatch):
    texts = [
        " ".join(f"w{chr(97 + i % 7)}{chr(97 + j % 11)}" for j in range(30)) for i in range(50)
    ]
    whole = batch_shingles(texts)
    monkeypatch.setattr(shingles_module, "_BLOCK", 100)
    parts = batch_shingles(texts)
    assert np.array_equal(whole.hashes, parts.hashes)
    assert np.array_equal(whole.offsets, parts.offsets)


@given(left=WORDS, right=WORDS)
def test_shared_and_repeated_shingles(left, right):
    one, two = " ".join(left * 3), " ".join(right + left * 3)
    assert shares_shingle(one, two) == bool(set(plain_shingles(one)) & set(plain_shingles(two)))
    assert repeats_shingle(one) == any(n > 1 for n in Counter(plain_shingles(one)).values())


def test_twelve_common_words_do_not_count_and_thirteen_do():
    words = [f"{chr(97 + i)}word" for i in range(13)]
    assert not shares_shingle(" ".join(words[:12]) + " x", " ".join(words[:12]) + " y")
    assert shares_shingle("Before: " + " ".join(words), ", ".join(words).upper() + "; 7 after")
    assert len(shingle_hashes(" ".join(words[:12]))) == 0


def test_near_duplicates_differ_in_case_digits_and_punctuation_only():
    text = "In 2018, the mayor's plan (version 3) was agreed; nobody had read it before the vote."
    other = text.upper().replace("2018", "1999").replace(";", " --").replace("3", "")
    assert shares_shingle(text, other)
    assert not repeats_shingle(text)
    assert repeats_shingle(text + "\n" + other)


def test_scripts_without_spaces_have_shingles():
    japanese = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"
    thai = "ประเทศไทยเป็นรัฐเอกราช"
    for text in (japanese, thai):
        assert shares_shingle(text, f"ab{text}cd")
        assert not repeats_shingle(text)
        assert repeats_shingle(text + text)
        assert not shares_shingle(text, text[:12])
    assert len(shingle_hashes("漢" * 13)) == 1
    assert len(shingle_hashes("กิ" * 12)) == 0  # a mark is no letter


def test_every_mark_belongs_to_the_letter_before_it():
    codes = range(sys.maxunicode + 1)
    marks = [c for c in map(chr, codes) if unicodedata.category(c)[0] == "M"]
    assert len(marks) > 2000
    for letter in "一กa":
        texts = [f"{letter}{mark} x" for mark in marks]
        counted = np.diff(batch_shingles(texts, 1).offsets).tolist()
        assert counted == [len(plain_words(text)) for text in texts]
        assert counted == [len(word_spans(text)) for text in texts]


def test_real_text_has_no_collisions(real_data):
    texts = [d.text for d in read_documents(real_data / "corpus" / "asp_en.jsonl.gz")]
    plain = {s for text in texts for s in plain_shingles(text)}
    assert len(np.unique(batch_shingles(texts).hashes)) == len(plain) > 50_000
