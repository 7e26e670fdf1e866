"""Which synthetic documents are dropped, and why (METHODS 1, light filter; SBP A.2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
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
    "context_too_long": "longer than the generator's context, as its engine says",
    "refused_by_engine": "the engine's own filter refused to answer",
    "failed": "no answer, for the reason in metadata.failure_message",
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
_FAILURES = ("unparseable", "context_too_long", "refused_by_engine", "failed")


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
    """`drop_reasons` of one document."""
    return drop_reasons(config, [document], [source_text], context)[0]


def drop_reasons(
    config: FilterConfig,
    documents: Sequence[Document],
    source_texts: Sequence[str],
    context: FilterContext = NO_CONTEXT,
) -> list[str | None]:
    """Of each document the first reason of `REASONS` to drop it, or None to keep it.

    All documents that come so far are hashed together, and a source once for all that were made
    from it: a batch costs half of what its documents cost one by one.

    Args:
        config: Which filters are on.
        documents: Their `token_counts` hold the tokens of their texts.
        source_texts: What each was made from; empty without a source.
        context: Of their method; without one the filters that need it are off.
    """
    reasons = [
        _reason_at_sight(config, document, source, context)
        for document, source in zip(documents, source_texts, strict=True)
    ]
    _note_held_out_text(documents, context.held_out, reasons)
    left = [n for n, reason in enumerate(reasons) if reason is None]
    if left and (config.repeated_shingle or config.max_copied_share < 1):
        sources = [source_texts[n] if config.max_copied_share < 1 else "" for n in left]
        shared = _Shared([documents[n].text for n in left], sources)
        for place, n in enumerate(left):
            repeats, copied = shared.count(place)
            if config.repeated_shingle and repeats:
                reasons[n] = "repeated_shingle"
            elif copied > config.max_copied_share:
                reasons[n] = "copies_source"
    if config.language:
        for n in left:
            if reasons[n] is None and differs_in_language(documents[n].text, source_texts[n]):
                reasons[n] = "other_language"
    return reasons


def copied_share(text: str, source: str) -> float:
    """Share of the distinct 13-token shingles of `text` that stand in `source`, 0 to 1.

    A text too short for shingles is a copy (1.0) when it has the same words as its source.
    """
    return _Shared([text], [source]).count(0)[1]


def text_tokens(document: Document) -> int:
    """Tokens of a document's text, without EOS."""
    return (document.token_counts or {})["text"]


def packed_tokens(document: Document) -> int:
    """Tokens that a document has in a packed corpus: its text and one EOS."""
    return text_tokens(document) + 1


def _reason_at_sight(
    config: FilterConfig, document: Document, source_text: str, context: FilterContext
) -> str | None:
    """The reasons that need no other text than the document's and its source's."""
    text = document.text
    failure = document.metadata.get("failure")
    if failure in _FAILURES:
        return str(failure)
    checks: tuple[tuple[str, Callable[[], bool]], ...] = (
        ("failed", lambda: document.finish_reason == "error"),
        ("empty", lambda: not text.strip()),
        ("unfinished", lambda: config.finished and document.finish_reason != "stop"),
        ("too_short", lambda: text_tokens(document) < config.min_tokens),
        ("too_long", lambda: _is_too_long(config, document, context)),
        ("nul_character", lambda: "\0" in text),
        ("special_spelling", lambda: config.special_spellings and spells_special_token(text)),
        ("refusal", lambda: config.refusals and begins_with_refusal(text)),
        ("repeats_prompt", lambda: _repeats_a_prompt(config, text, source_text, context)),
    )
    return next((reason for reason, applies in checks if applies()), None)


class _Shared:
    """The shingles of texts and of what each was made from, all hashed together."""

    def __init__(self, texts: Sequence[str], sources: Sequence[str]) -> None:
        self._texts, self._sources = texts, sources
        places = {text: n for n, text in enumerate(dict.fromkeys(sources), len(texts))}
        self._place_of_source = [places[source] for source in sources]
        self._sets = batch_shingles([*texts, *places])

    def count(self, place: int) -> tuple[int, float]:
        """Shingles of a text that stand in it before; see `copied_share`."""
        own, source = self._sets[place], self._sets[self._place_of_source[place]]
        distinct, shared = count_shared(own, source)
        if not distinct:
            return 0, float(self._texts[place].split() == self._sources[place].split())
        return len(own) - distinct, shared / distinct


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


def _note_held_out_text(
    documents: Sequence[Document], held_out: Path | None, reasons: list[str | None]
) -> None:
    left = [n for n, reason in enumerate(reasons) if reason is None]
    if held_out is None or not left:
        return
    for n, hit in zip(
        left, read_held_out(held_out).hits([documents[n].text for n in left]), strict=True
    ):
        if hit is not None:
            reasons[n] = "held_out_text"


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
