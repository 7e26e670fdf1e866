import time
import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_synth.corpus import ImportConfig
from megatron_synth.corpus.normalise import normalise_text

ALL = ("unicode", "long_urls", "line_breaks")


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("line_breaks", "a  \r\n\r\n\n\n\nb\rc\u2028d\n\n", "a\n\nb\nc\nd"),
        ("line_breaks", "  indented\n\n  code", "  indented\n\n  code"),
        ("line_breaks", "one\x0ctwo \x0bthree", "one\ntwo\nthree"),
        ("unicode", "one\x0ctwo\x0bthree", "one\ntwo\nthree"),
        ("line_breaks", "a \t b\t \n \nc\t", "a \t b\n\nc"),
        ("long_urls", f"see https://x.org/{'a' * 90} there", "see  there"),
        ("long_urls", "see https://x.org/short there", "see https://x.org/short there"),
        ("unicode", "\ufeffe\u0301\u200b \x07tab\t.", "é tab\t."),
        ("unicode", "cafe\u200b\u0301", "café"),
    ],
)
def test_each_step_changes_what_it_names_and_counts_it(step, before, after):
    changed = Counter()
    assert normalise_text(before, [step], changed) == after
    assert changed == (Counter({step: 1}) if before != after else Counter())


URL = "https://x.org/" + "a" * 80
PIECES = ("\u200b", "\u0301", "\u0323", "e", "\u1100", "\u1161", "\n", "\r", "\x0c", " ", "\t")


@given(
    text=st.text(st.characters(exclude_categories=["Cs"]))
    | st.lists(st.sampled_from((*PIECES, URL, "https", "://", "中"))).map("".join)
)
def test_normalising_twice_changes_nothing_more(text):
    assert tuple(ImportConfig().normalise) == ALL
    once = normalise_text(text, ALL, Counter())
    assert normalise_text(once, ALL, Counter()) == once
    assert unicodedata.is_normalized("NFC", once)
    assert "\u200b" not in once


def test_prose_without_spaces_after_an_address_stays():
    prose = "这是一段很长的中文正文没有空格所以不会被整段删除。" * 6
    short = f"详见http://www.example.com，{prose}\n下一段"
    assert normalise_text(short, ALL, Counter()) == short
    assert normalise_text(f"详见{URL}，{prose}", ALL, Counter()) == f"详见，{prose}"


def test_no_step_leaves_the_text_alone():
    assert normalise_text("a\r\n\n\n\n", [], Counter()) == "a\r\n\n\n\n"


def test_a_long_run_of_blanks_inside_a_line_takes_no_longer_than_its_length():
    text = "a" + " \t" * 500_000 + "b"
    started = time.perf_counter()
    assert normalise_text(text, ["line_breaks"], Counter()) == text
    assert time.perf_counter() - started < 5  # by trying every blank as a start, hours
