"""Every filter drops what it is for, with its reason, and nothing else."""

import pytest
from scripted import honest_text

from megatron_synth.corpus import Document
from megatron_synth.synthesis import REASONS, FilterConfig, drop_reason
from megatron_synth.synthesis.filters import copied_share, packed_tokens

CONFIG = FilterConfig()
SOURCE = honest_text("source")


def make(text: str, *, tokens: int = 60, finish: str = "stop") -> Document:
    return Document("d", text, finish_reason=finish, token_counts={"text": tokens})


def test_an_honest_document_is_kept():
    assert drop_reason(CONFIG, make(honest_text("a")), SOURCE) is None


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (make("", finish="error", tokens=0), "failed"),
        (make(" \n\t", tokens=3), "empty"),
        (make(honest_text("a"), finish="length"), "unfinished"),
        (make(honest_text("a"), tokens=49), "too_short"),
        (make(honest_text("a") + "\0"), "nul_character"),
        (make(honest_text("a", 20) + " then " + honest_text("a", 20)), "repeated_shingle"),
        (make(SOURCE), "copies_source"),
        (make(honest_text("a", 15) + " " + honest_text("source", 80)), "copies_source"),
    ],
)
def test_each_reason_is_found(document, reason):
    assert drop_reason(CONFIG, document, SOURCE) == reason
    assert reason in REASONS


@pytest.mark.parametrize(
    ("config", "document"),
    [
        (FilterConfig(finished=False), make(honest_text("a"), finish="length")),
        (FilterConfig(min_tokens=49), make(honest_text("a"), tokens=49)),
        (
            FilterConfig(repeated_shingle=False),
            make(honest_text("a", 20) + " then " + honest_text("a", 20)),
        ),
        (FilterConfig(max_copied_share=1.0), make(SOURCE)),
    ],
)
def test_each_filter_can_be_set(config, document):
    assert drop_reason(CONFIG, document, SOURCE) is not None
    assert drop_reason(config, document, SOURCE) is None


def test_the_spelling_of_a_control_token_is_data():
    text = honest_text("a") + " <|endoftext|> <|separator|>"
    assert drop_reason(CONFIG, make(text), SOURCE) is None


def test_the_copied_share_counts_shingles_of_the_text():
    assert copied_share(SOURCE, SOURCE) == 1.0
    assert copied_share(honest_text("a"), SOURCE) == 0.0
    half = honest_text("a", 52) + " " + " ".join(SOURCE.split()[:52])
    assert 0.3 < copied_share(half, SOURCE) < 0.5


def test_a_text_too_short_for_shingles_is_a_copy_only_when_it_is_equal():
    assert copied_share("three short words", "three  short words\n") == 1.0
    assert copied_share("1 2 3", "4 5 6") == 0.0


def test_tokens_count_as_they_are_packed():
    assert packed_tokens(make("x", tokens=60)) == 61
