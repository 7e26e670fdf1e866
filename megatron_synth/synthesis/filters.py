"""Which synthetic documents are dropped, and why (METHODS 1, light filter; SBP A.2)."""

from collections.abc import Callable

import numpy as np

from megatron_synth.corpus import Document, repeats_shingle
from megatron_synth.corpus.shingles import batch_shingles
from megatron_synth.synthesis.config import FilterConfig

REASONS = {
    "failed": "the engine gave no answer",
    "empty": "no text",
    "unfinished": "cut at the longest answer before it ended by itself",
    "too_short": "fewer tokens than filters.min_tokens",
    "nul_character": "holds a NUL character, which no document file can carry",
    "repeated_shingle": "some 13-token shingle occurs more than once",
    "copies_source": "too large a share of its 13-token shingles stands in its source",
}
"""Every reason for which a document is dropped; the first that applies is recorded."""


def drop_reason(config: FilterConfig, document: Document, source_text: str) -> str | None:
    """The first reason of `REASONS` to drop `document`, or None to keep it.

    Text that spells out a special token is data and no reason.
    """
    text = document.text
    checks: tuple[tuple[str, Callable[[], bool]], ...] = (
        ("failed", lambda: document.finish_reason == "error"),
        ("empty", lambda: not text.strip()),
        ("unfinished", lambda: config.finished and document.finish_reason != "stop"),
        ("too_short", lambda: text_tokens(document) < config.min_tokens),
        ("nul_character", lambda: "\0" in text),
        ("repeated_shingle", lambda: config.repeated_shingle and repeats_shingle(text)),
        ("copies_source", lambda: copied_share(text, source_text) > config.max_copied_share),
    )
    return next((reason for reason, applies in checks if applies()), None)


def copied_share(text: str, source: str) -> float:
    """Share of the distinct 13-token shingles of `text` that stand in `source`, 0 to 1.

    A text too short for shingles is a copy (1.0) when it has the same words as its source.
    """
    sets = batch_shingles([text, source])
    own = np.unique(sets[0])
    if not len(own):
        return float(text.split() == source.split())
    return float(np.isin(own, sets[1]).mean())


def text_tokens(document: Document) -> int:
    """Tokens of a document's text, without EOS."""
    return (document.token_counts or {})["text"]


def packed_tokens(document: Document) -> int:
    """Tokens that a document has in a packed corpus: its text and one EOS."""
    return text_tokens(document) + 1
