"""The ftfy step: broken Unicode is mended, what is fine is left alone."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_synth.corpus.document import check_text
from megatron_synth.corpus.normalise import fix_broken, normalise_text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("schÃ¶n und fÃ¼r", "schön und für"),
        ("itâ€™s â€œquotedâ€\x9d", "it’s “quoted”"),
        ("cafÃ©\xa0au lait", "café\xa0au lait"),
        ("a – b", "a – b"),
        ("\x93smart\x94 quotes", "“smart” quotes"),
    ],
)
def test_mojibake_is_mended_and_counted(before, after):
    changed = Counter()
    assert normalise_text(before, ["ftfy"], changed) == after
    assert changed == (Counter(ftfy=1) if before != after else Counter())


@pytest.mark.parametrize(
    "fine",
    [
        "‘single’ “double” «angled» – — …",
        "½ cup, ¾ mile, 10 µm, 20 °C, x², H₂O",
        "ﬁne ﬂow ĳ",
        "Ｆｕｌｌ　ｗｉｄｔｈ ｶﾀｶﾅ",
        "&lt;b&gt; &amp; &eacute;",
        "crème brûlée, Ångström, naïve, São Paulo",
        "e\u0301 stays decomposed; \u200bzero width; a\r\nb\u2028c",
        "Привет, 世界, こんにちは, שלום, مرحبا, 👩‍👩‍👧",
        "\x1b[1mterminal\x1b[0m é",
    ],
)
def test_what_is_fine_is_left_alone(fine):
    assert fix_broken(fine) == fine


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_mending_twice_changes_nothing_more_and_gives_valid_unicode(text):
    once = fix_broken(text)
    assert fix_broken(once) == once
    once.encode()


WORDS = (
    *("schön", "größer", "Straße", "été", "naïve", "mañana", "Ångström", "“so”", "‘it’"),
    *("½", "–", "…", "世界", "Привет", "plain", "words"),
)


FRAGMENTS = ("Ã©", "Ã©tÃ©", "À\x80", "Ã€\x80", "í\xa0\xbd", "í²\xa9", " ", "é", "Ã")


@given(text=st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join))
def test_no_mending_makes_a_text_that_is_no_document(text):
    check_text(fix_broken(text))


def test_a_text_that_mending_would_give_a_nul_stays_as_it_is():
    text = "Ã©tÃ© À\x80 Ã©"
    changed = Counter()
    assert normalise_text(text, ["ftfy"], changed) == text
    assert not changed


@given(words=st.lists(st.sampled_from(WORDS), max_size=20))
def test_sound_words_in_any_order_survive(words):
    assert fix_broken(" ".join(words)) == " ".join(words)


@given(words=st.lists(st.sampled_from(WORDS[:9]), max_size=20))
def test_sound_words_that_were_decoded_as_latin_1_come_back(words):
    text = " ".join(words)
    assert fix_broken(text.encode().decode("latin-1")) == text
