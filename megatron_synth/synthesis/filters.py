"""Which synthetic documents are dropped, and why (METHODS 1, light filter; SBP A.2)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from megatron_synth.corpus import Document
from megatron_synth.corpus.decontamination import Benchmarks, DecontaminateConfig
from megatron_synth.corpus.shingles import batch_shingles, count_shared
from megatron_synth.synthesis.config import FilterConfig, SynthesisConfig
from megatron_synth.synthesis.language import differs_in_language
from megatron_synth.synthesis.methods.defaults import DEFAULTS
from megatron_synth.synthesis.phrases import (
    begins_with_refusal,
    repeats_prompt,
    spells_special_token,
)

REASONS = {
    "unparseable": "no answer in the form that the prompt asks for, after synthesis.tries",
    "failed": "the engine gave no answer",
    "empty": "no text",
    "unfinished": "cut at the longest answer before it ended by itself",
    "too_short": "fewer tokens than filters.min_tokens",
    "too_long": "more than filters.max_times_target times the tokens that its method aims at",
    "nul_character": "holds a NUL character, which no document file can carry",
    "special_spelling": "spells out a control token (filters.special_spellings)",
    "refusal": "begins by saying that it will not answer",
    "repeats_prompt": "repeats a sentence of its prompt",
    "held_out_text": "holds a run of 13 words of a held-out document",
    "repeated_shingle": "some 13-token shingle occurs more than once",
    "copies_source": "too large a share of its 13-token shingles stands in its source",
    "other_language": "is in another language than its source",
}
"""Every reason for which a document is dropped; the first that applies is recorded."""


@dataclass(frozen=True)
class FilterContext:
    """What a filter must know of the method beside the document.

    Attributes:
        prompts: Bodies of the prompts, their fields unfilled; none without a prompt text.
        target_tokens: Tokens that a document should have; None where the method names none.
        held_out: JSONL of documents whose text may not come into the corpus; None: none.
    """

    prompts: tuple[str, ...] = ()
    target_tokens: int | None = None
    held_out: Path | None = None

    @classmethod
    def of(
        cls, config: SynthesisConfig, prompts: tuple[str, ...], held_out: Path | None = None
    ) -> "FilterContext":
        """The context of a method under these settings.

        A document that is asked about in chunks is as long as it has chunks: it has no target.
        """
        chunks = config.long_input == "chunk"
        return cls(prompts, None if chunks else DEFAULTS[config.method].target_tokens, held_out)


NO_CONTEXT = FilterContext()


def drop_reason(
    config: FilterConfig,
    document: Document,
    source_text: str,
    context: FilterContext = NO_CONTEXT,
) -> str | None:
    """The first reason of `REASONS` to drop `document`, or None to keep it.

    Args:
        config: Which filters are on.
        document: Its `token_counts` hold the tokens of its text.
        source_text: What it was made from; empty without a source.
        context: Of its method; without one the filters that need it are off.
    """
    text = document.text
    shared = _Shared(text, source_text)
    checks: tuple[tuple[str, Callable[[], bool]], ...] = (
        ("unparseable", lambda: document.metadata.get("failure") == "unparseable"),
        ("failed", lambda: document.finish_reason == "error"),
        ("empty", lambda: not text.strip()),
        ("unfinished", lambda: config.finished and document.finish_reason != "stop"),
        ("too_short", lambda: text_tokens(document) < config.min_tokens),
        ("too_long", lambda: _is_too_long(config, document, context)),
        ("nul_character", lambda: "\0" in text),
        ("special_spelling", lambda: config.special_spellings and spells_special_token(text)),
        ("refusal", lambda: config.refusals and begins_with_refusal(text)),
        ("repeats_prompt", lambda: _repeats_a_prompt(config, text, source_text, context)),
        ("held_out_text", lambda: _holds_held_out_text(text, context.held_out)),
        ("repeated_shingle", lambda: config.repeated_shingle and shared.repeats),
        (
            "copies_source",
            lambda: config.max_copied_share < 1 and shared.copied_share > config.max_copied_share,
        ),
        ("other_language", lambda: config.language and differs_in_language(text, source_text)),
    )
    return next((reason for reason, applies in checks if applies()), None)


def copied_share(text: str, source: str) -> float:
    """Share of the distinct 13-token shingles of `text` that stand in `source`, 0 to 1.

    A text too short for shingles is a copy (1.0) when it has the same words as its source.
    """
    return _Shared(text, source).copied_share


def text_tokens(document: Document) -> int:
    """Tokens of a document's text, without EOS."""
    return (document.token_counts or {})["text"]


def packed_tokens(document: Document) -> int:
    """Tokens that a document has in a packed corpus: its text and one EOS."""
    return text_tokens(document) + 1


class _Shared:
    """The shingles of a text and of its source, hashed at the first question."""

    def __init__(self, text: str, source: str) -> None:
        self._texts = (text, source)

    @cached_property
    def _counts(self) -> tuple[int, int, int]:
        """Shingles of the text, distinct ones, those of them in the source."""
        sets = batch_shingles(self._texts)
        return len(sets[0]), *count_shared(sets[0], sets[1])

    @property
    def repeats(self) -> bool:
        """Whether some shingle of the text occurs twice."""
        total, distinct, _ = self._counts
        return distinct < total

    @property
    def copied_share(self) -> float:
        """See the function of this name."""
        _, distinct, shared = self._counts
        if not distinct:
            text, source = self._texts
            return float(text.split() == source.split())
        return shared / distinct


def read_held_out(path: Path) -> Benchmarks:
    """The 13-grams of held-out documents, read once in a process.

    Raises:
        DataError: No such file, no JSONL, or no text in it.
    """
    return _read_held_out(path, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=2)
def _read_held_out(path: Path, changed: int) -> Benchmarks:
    del changed
    return Benchmarks(DecontaminateConfig(queries=(str(path),), keys=("text",)))


def _holds_held_out_text(text: str, held_out: Path | None) -> bool:
    return held_out is not None and read_held_out(held_out).hits([text])[0] is not None


def _is_too_long(config: FilterConfig, document: Document, context: FilterContext) -> bool:
    if config.max_times_target is None or context.target_tokens is None:
        return False
    return text_tokens(document) > config.max_times_target * context.target_tokens


def _repeats_a_prompt(
    config: FilterConfig, text: str, source_text: str, context: FilterContext
) -> bool:
    words = config.prompt_phrase_words
    if words is None:
        return False
    return any(repeats_prompt(text, source_text, body, words) for body in context.prompts)
