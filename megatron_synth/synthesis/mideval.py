"""Mideval: what a small synthesis run says about a large one, before it is paid for (METHODS 1).

Reference values (SBP Table 2, in percent; lower is better):

| | repetition | duplicate@1M | non-factual | pair-irrelevance | pair-copying |
|---|---|---|---|---|---|
| 200B scale | 4.3 | 0.8 | 15.1 | 25.6 | 0.1 |
| 1T scale | 3.9 | 0.8 | 8.7 | 7.8 | 0.9 |
| real | 1.8 | 0.7 | 1.8 | - | - |

There repetition, irrelevance and copying come from a judge model, here only irrelevance and
factuality do: repetition and copying are rules. Repetition is a 13-token shingle that occurs
twice, which the filters of synthesis drop: look at it with `filters.repeated_shingle=false`.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_synth.config import ConfigError, DataError, RunError
from megatron_synth.corpus import (
    Document,
    NearDuplicatesConfig,
    batch_shingles,
    read_documents,
    repeats_shingle,
)
from megatron_synth.corpus.holding_out import seeded_hash
from megatron_synth.corpus.near_duplicates import NearDuplicates
from megatron_synth.corpus.shingles import count_shared
from megatron_synth.engines import Engine
from megatron_synth.runs import Progress
from megatron_synth.synthesis.judging import FACTUALITY, RELEVANCE, judge
from megatron_synth.synthesis.mideval_config import LIMITS, MidevalConfig, MidevalLimits

_BATCH = 256
_NEAR = 0.6
_SHINGLE_WORDS = 5

__all__ = [
    "MidevalConfig",
    "Pair",
    "check_figures",
    "count_near_duplicates",
    "is_near_copy",
    "measure",
    "mideval",
]


@dataclass(frozen=True)
class Pair:
    """A synthetic document and the text of its source; None without a source."""

    document: Document
    source: str | None


def mideval(
    config: MidevalConfig,
    synthetic: str | Path,
    documents: str | Path | None,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Figures of a synthetic corpus; see `MidevalConfig` for what each one is.

    Args:
        config: Samples and limits.
        synthetic: The synthetic documents.
        documents: Their sources; None leaves out what needs them.
        engine: The judge; None leaves out relevance and factuality.
        progress: Is told the phase.

    Returns:
        `repetition`, `near_duplicates`, `copies`, `irrelevant`, `factual_errors`,
        `factuality_undefined` (shares, None where not measured), how many documents each rests
        on (`*_samples`), `cut` (texts that a judge saw the beginning of only), `unjudged`.

    Raises:
        ConfigError: A limit is set on what cannot be measured without sources or a judge.
        DataError: No documents, or a sampled one's source is not among `documents`.
        RunError: A figure is over its limit, or the judge gave too few answers; the message has
            the figures.
    """
    _refuse_unmeasured(config, documents, engine)
    progress = progress or Progress()
    progress.phase("drawing documents")
    drawn, near, looked_at = _read(config, read_documents(synthetic))
    pairs = _with_sources(drawn[: config.samples], documents)
    facts = drawn[: config.factuality_samples]
    figures = measure(config, pairs, facts, near / looked_at, looked_at, engine, progress)
    broken = check_figures(config, figures)
    if broken:
        what, fix = broken
        raise RunError(what, fix=fix)
    return figures


def measure(
    config: MidevalLimits,
    pairs: Sequence[Pair],
    facts: Sequence[Document],
    near_duplicates: float,
    near_samples: int,
    engine: Engine | None,
    progress: Progress,
) -> dict[str, Any]:
    """The figures that `mideval` describes; nothing is refused here.

    Args:
        config: How the judge is asked.
        pairs: Documents for repetition, copies and relevance.
        facts: Documents for factuality.
        near_duplicates: Their share, which is counted while documents are read, and
        near_samples: among how many.
        engine: The judge.
        progress: Is told the phase.
    """
    progress.phase("counting")
    with_source = [pair for pair in pairs if pair.source is not None]
    figures: dict[str, Any] = {
        "repetition": _mean(repeats_shingle(pair.document.text) for pair in pairs),
        "near_duplicates": near_duplicates,
        "copies": _mean(is_near_copy(p.document.text, p.source or "") for p in with_source),
        "irrelevant": None,
        "factual_errors": None,
        "factuality_undefined": None,
        "samples": len(pairs),
        "near_duplicates_samples": near_samples,
        "copies_samples": len(with_source),
    }
    if engine is not None:
        _judge(config, engine, with_source, facts, figures, progress)
    return figures


def count_near_duplicates(documents: Iterable[Document]) -> int:
    """Documents that repeat an earlier one (Jaccard of at least 0.6, estimated)."""
    known = _known()
    return sum(_near_duplicates(known, [document]) for document in documents)


def is_near_copy(text: str, source: str) -> bool:
    """Whether the sets of 5-word shingles of both have a Jaccard similarity of at least 0.6.

    Texts of fewer words are copies where their words are the same.
    """
    sets = batch_shingles([text, source], _SHINGLE_WORDS)
    own, shared = count_shared(sets[0], sets[1])
    other, _ = count_shared(sets[1], sets[0])
    union = own + other - shared
    return shared >= _NEAR * union if union else text.split() == source.split()


def _read(config: MidevalConfig, documents: Iterable[Document]) -> tuple[list[Document], int, int]:
    """A sample in random order, near-duplicates among the first documents, how many these are."""
    wanted = max(config.samples, config.factuality_samples)
    heap: list[tuple[int, int, Document]] = []  # those with the smallest keys: a uniform sample
    known = _known()
    batch: list[Document] = []
    near = count = 0
    for document in documents:
        item = (-seeded_hash(config.seed, "mideval", document.id), count, document)
        if len(heap) < wanted:
            heapq.heappush(heap, item)
        else:
            heapq.heappushpop(heap, item)
        count += 1
        if count <= config.duplicate_samples:
            batch.append(document)
        if len(batch) == _BATCH:
            near += _near_duplicates(known, batch)
            batch = []
    if not count:
        raise DataError("there are no synthetic documents", fix="Check the corpus given.")
    near += _near_duplicates(known, batch)
    ordered = [document for _, _, document in sorted(heap, reverse=True)]
    return ordered, near, min(count, config.duplicate_samples)


def _known() -> NearDuplicates:
    return NearDuplicates(
        NearDuplicatesConfig(threshold=_NEAR, shingle_words=_SHINGLE_WORDS, seed=0)
    )


def _near_duplicates(known: NearDuplicates, batch: list[Document]) -> int:
    found = 0
    for document, signature in zip(
        batch, known.signatures([document.text for document in batch]), strict=True
    ):
        if known.find(signature) is None:
            known.add(document.id, signature)
        else:
            found += 1
    return found


def _with_sources(drawn: list[Document], documents: str | Path | None) -> list[Pair]:
    if documents is None:
        return [Pair(document, None) for document in drawn]
    wanted = {d.source_id for d in drawn if d.source_id is not None}
    texts = {d.id: d.text for d in read_documents(documents) if d.id in wanted}
    missing = sorted(wanted - set(texts))
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(wanted):,} sources are not among the documents, the first "
            f"is {missing[0]!r}",
            where=str(documents),
            fix="Give the documents that the synthetic ones were made from.",
        )
    return [
        Pair(document, None if document.source_id is None else texts[document.source_id])
        for document in drawn
    ]


def _judge(
    config: MidevalLimits,
    engine: Engine,
    pairs: Sequence[Pair],
    facts: Sequence[Document],
    figures: dict[str, Any],
    progress: Progress,
) -> None:
    limit = config.max_characters
    texts = [document.text for document in facts]
    rows = [{"source": pair.source or "", "text": pair.document.text} for pair in pairs]
    figures["cut"] = sum(len(text) > limit for text in texts)
    figures["cut"] += sum(any(len(text) > limit for text in row.values()) for row in rows)
    progress.phase("judging relevance", len(rows), "documents")
    cut_rows = [{name: text[:limit] for name, text in row.items()} for row in rows]
    relevance = judge(RELEVANCE, cut_rows, engine, config.max_answer_tokens)
    progress.phase("judging factuality", len(texts), "documents")
    cut_texts = [{"text": text[:limit]} for text in texts]
    factuality = judge(FACTUALITY, cut_texts, engine, config.max_answer_tokens)
    figures |= {
        "irrelevant": relevance.share("irrelevant"),
        "factual_errors": factuality.share("error"),
        "factuality_undefined": factuality.share("undefined"),
        "irrelevant_samples": relevance.judged,
        "factuality_samples": factuality.judged,
        "unparseable": relevance.unparseable + factuality.unparseable,
        "failed": relevance.failed + factuality.failed,
    }
    figures["unjudged"] = figures["unparseable"] + figures["failed"]


def check_figures(
    config: MidevalLimits, figures: Mapping[str, Any], more: Sequence[str] = ()
) -> tuple[str, str] | None:
    """What stops a run, and what to do about it; None where the figures pass.

    Args:
        config: The limits.
        figures: See `measure`.
        more: Further limits that are broken, each in words.
    """
    unjudged = figures.get("unjudged", 0)
    asked = unjudged + figures.get("irrelevant_samples", 0) + figures.get("factuality_samples", 0)
    if asked - unjudged < config.min_judged_share * asked:
        return (
            f"the judge answered {asked - unjudged:,} of {asked:,} questions in the form asked "
            f"for: {figures['unparseable']:,} answers are none of the labels or were cut, "
            f"{figures['failed']:,} failed",
            "Use a stronger judge, raise max_answer_tokens, or lower min_judged_share.",
        )
    over = list(more)
    for name, setting in LIMITS.items():
        limit, figure = getattr(config, setting), figures[name]
        if limit is None:
            continue
        if figure is None:
            over.append(f"{name} could not be measured: no source or verdict ({setting})")
        elif figure > limit:
            over.append(f"{name} {figure:.1%} ({setting} {limit:.1%})")
    if not over:
        return None
    measured = ", ".join(
        f"{name} {figures[name]:.1%}" for name in LIMITS if figures[name] is not None
    )
    return (
        f"mideval stops here: {'; '.join(over)}. All figures: {measured}",
        "Look at the documents before you pay for more of them; or raise the limit.",
    )


def _refuse_unmeasured(
    config: MidevalConfig, documents: str | Path | None, engine: Engine | None
) -> None:
    needed = {"max_copies": documents, "max_irrelevant": documents and engine}
    needed["max_factual_errors"] = engine
    for setting, given in needed.items():
        if getattr(config, setting) is not None and given is None:
            raise ConfigError(
                f"{setting} is set, but what it needs is not given",
                fix="Give the source documents for copies and relevance, and a judge for relevance "
                "and factuality.",
            )


def _mean(values: Iterable[bool]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None
