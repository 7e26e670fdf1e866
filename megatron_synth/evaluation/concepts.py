"""Concept analysis: what a synthetic document took over from its seed (SBP, B.1 and Table 3).

A judge reads a document and its source and names three things, each in at most ten words: what
the source is, the concept that both share, what the document is. A person reads the table: it
tells paraphrases from new documents about the same thing.
"""

import heapq
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from megatron_synth.config import Config, Count, DataError, RunError
from megatron_synth.corpus import Document, read_documents
from megatron_synth.corpus.holding_out import seeded_hash
from megatron_synth.engines import (
    Completion,
    Engine,
    EngineConfig,
    Request,
    Sampling,
    complete,
)
from megatron_synth.runs import Progress, atomic_write, hash_json
from megatron_synth.runs.atomic import disk_errors
from megatron_synth.synthesis.answers import Unparseable
from megatron_synth.synthesis.prompts import load_prompt

MOST_WORDS = 10
CONCEPTS = "concepts.jsonl"
_NAMES = ("first", "shared", "second")
_EDGES = " \t\r*_`>#-"
_TRIES = 3
_SHOWN = 10


class ConceptConfig(Config):
    """How many pairs are read, and how."""

    samples: Count = Field(default=1000, ge=1)
    """Synthetic documents with a source, drawn uniformly."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides which."""
    max_characters: int = Field(default=12_000, ge=100)
    """The judge sees no more than this of a text; how many pairs were cut is counted."""
    max_answer_tokens: int = Field(default=128, ge=1)
    """Longest answer of the judge; a model that thinks aloud first needs more."""
    min_judged_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the answers that must have the form asked for."""
    engine: EngineConfig | None = None
    """How the judge is asked (docs/engines.md); not set: vLLM with the judge's folder."""


@dataclass(frozen=True)
class Concept:
    """What a judge said of a pair, each in at most ten words.

    Attributes:
        source_summary: What the source is.
        concept: What both share.
        summary: What the synthetic document is.
    """

    source_summary: str
    concept: str
    summary: str


def read_concept(answer: str) -> Concept:
    """Read the three lines `First:`, `Shared:`, `Second:`; marks around them do not matter.

    Raises:
        Unparseable: A line is missing, empty or there twice, or has more than ten words.
    """
    found: dict[str, str] = {}
    for line in answer.splitlines():
        name, colon, rest = line.strip(_EDGES).partition(":")
        name = name.strip(_EDGES).casefold()
        if not colon or name not in _NAMES:
            continue
        if name in found:
            raise Unparseable("a line is there twice")
        found[name] = " ".join(rest.strip(_EDGES + "\"'“”").split())
    if not all(found.get(name) for name in _NAMES):
        raise Unparseable("a line is missing")
    if any(len(text.split()) > MOST_WORDS for text in found.values()):
        raise Unparseable("over ten words")
    return Concept(*(found[name] for name in _NAMES))


def analyse_concepts(
    config: ConceptConfig,
    synthetic: str | Path,
    documents: str | Path,
    engine: Engine,
    out: Path,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask the judge about a sample of pairs and write what it said.

    Writes `out/concepts.jsonl`, atomically, a line a pair whose answer has the form asked for:
    `id`, `source_id`, and the fields of `Concept`.

    Args:
        config: Samples and limits.
        synthetic: The synthetic documents; those without a source are left out.
        documents: Their sources.
        engine: The judge; a `LoggedEngine` asks nothing twice, whatever is killed.
        out: Folder to write to.
        progress: Counts answers.

    Returns:
        `asked`, `read`, `failed`, `unparseable` (counts by reason), `cut`, `distinct_concepts`,
        and `examples`: the first ten lines.

    Raises:
        DataError: No document has a source, or a source is not among `documents`.
        RunError: Too few answers have the form asked for.
    """
    progress = progress or Progress()
    pairs = _draw_pairs(config, synthetic, documents, progress)
    prompt = load_prompt("judge/concept", frozenset({"source", "text"}))
    sampling = Sampling(temperature=0.0, max_tokens=config.max_answer_tokens, seed=0)
    limit = config.max_characters
    requests = {}
    for document, source in pairs:
        text = prompt.fill({"source": source[:limit], "text": document.text[:limit]})
        key = hash_json([prompt.identity, document.id, text])
        requests[document.id] = Request(key, text, sampling)
    progress.phase("asking the judge", len(requests), "pairs")
    answers = _ask(engine, list(requests.values()), progress)
    unparseable: Counter[str] = Counter()
    failed, rows = 0, []
    for document, _ in pairs:
        answer = answers[requests[document.id].key]
        if answer.error is not None:
            failed += 1
            continue
        try:
            if answer.finish_reason != "stop":
                raise Unparseable("cut at max_answer_tokens")
            concept = read_concept(answer.text)
        except Unparseable as reason:
            unparseable[str(reason)] += 1
            continue
        rows.append({"id": document.id, "source_id": document.source_id, **asdict(concept)})
    if len(rows) < config.min_judged_share * len(pairs):
        reasons = ", ".join(f"{count:,} × {reason}" for reason, count in unparseable.items())
        raise RunError(
            f"{len(rows):,} of {len(pairs):,} answers of the judge have the form asked for; "
            f"{failed:,} failed; the others: {reasons or 'none'}",
            fix="Use a stronger judge, raise max_answer_tokens, or lower min_judged_share.",
        )
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / CONCEPTS) as handle:
        handle.writelines(json.dumps(row) + "\n" for row in rows)
    return {
        "asked": len(pairs),
        "read": len(rows),
        "failed": failed,
        "unparseable": dict(unparseable),
        "cut": sum(max(len(d.text), len(source)) > limit for d, source in pairs),
        "distinct_concepts": len({row["concept"].casefold() for row in rows}),
        "examples": rows[:_SHOWN],
    }


def _draw_pairs(
    config: ConceptConfig, synthetic: str | Path, documents: str | Path, progress: Progress
) -> list[tuple[Document, str]]:
    progress.phase("drawing pairs")
    drawn = heapq.nsmallest(
        config.samples,
        (d for d in read_documents(synthetic) if d.source_id is not None),
        key=lambda document: seeded_hash(config.seed, "concepts", document.id),
    )
    if not drawn:
        raise DataError("no document names its source (`source_id`)", where=str(synthetic))
    wanted = {document.source_id for document in drawn}
    sources = {d.id: d.text for d in read_documents(documents) if d.id in wanted}
    return list(zip(drawn, sources_of(drawn, sources, str(documents)), strict=True))


def sources_of(drawn: Iterable[Document], sources: dict[str, str], where: str) -> list[str]:
    """The source's text of each document.

    Raises:
        DataError: Some are not among `sources`.
    """
    names = [document.source_id or "" for document in drawn]
    missing = sorted(set(names) - sources.keys())
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(set(names)):,} sources are not among the documents, the "
            f"first is {missing[0]!r}",
            where=where,
            fix="Give the documents that the synthetic ones were made from.",
        )
    return [sources[name] for name in names]


def _ask(engine: Engine, waiting: list[Request], progress: Progress) -> dict[str, Completion]:
    """An answer to each request; what fails in passing is asked three times in all."""
    answers: dict[str, Completion] = {}
    for _ in range(_TRIES):
        if not waiting:
            break
        for completion in complete(engine, waiting):
            answers[completion.key] = completion
            progress.update(len(answers))
        waiting = [request for request in waiting if answers[request.key].transient]
    return answers
