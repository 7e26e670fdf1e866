"""The quality table of a synthetic corpus and of the real one beside it (SBP, Table 2).

| column | on | how |
|---|---|---|
| repetition | `rule_samples` | some 13-token shingle occurs twice (a judge in the paper) |
| duplicate | `duplicate_samples` | has a near-duplicate among them (`corpus.duplicate_share`) |
| non_factual | `factuality_samples` | judge: at least one factual error |
| irrelevance | `samples` | judge: has nothing to do with the document it came from |
| copying | `rule_samples` | Jaccard of at least 0.6 with that document (a judge in the paper) |

Documents are drawn uniformly, in one pass over each corpus; pairs are a synthetic document and
its source. Memory: the drawn documents, their sources, and 576 bytes for each document that is
looked at for near-duplicates. Intervals are Wilson's, 95 %, over the choice of documents; how far
a judge is right is not in them, and duplicates of one corpus are not independent.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from megatron_synth.config import Config, Count, DataError, RunError
from megatron_synth.corpus import (
    Document,
    read_documents,
    repeats_shingle,
    shares_shingle,
)
from megatron_synth.corpus.blocks import document_blocks
from megatron_synth.corpus.duplicate_share import DuplicateSample
from megatron_synth.corpus.holding_out import seeded_hash
from megatron_synth.engines import Engine, EngineConfig
from megatron_synth.evaluation.concepts import sources_of
from megatron_synth.evaluation.proportions import share_record
from megatron_synth.runs import Progress
from megatron_synth.synthesis.judging import FACTUALITY, RELEVANCE, Judgement, Verdicts, judge
from megatron_synth.synthesis.mideval import is_near_copy

TABLE = "quality.json"
COLUMNS = ("repetition", "duplicate", "non_factual", "irrelevance", "copying")
"""The paper's columns; lower is better in all."""

REFERENCE: Mapping[str, Mapping[str, float | None]] = {
    "SBP, 200B scale": dict(zip(COLUMNS, (0.043, 0.008, 0.151, 0.256, 0.001), strict=True)),
    "SBP, 1T scale": dict(zip(COLUMNS, (0.039, 0.008, 0.087, 0.078, 0.009), strict=True)),
    "SBP, real documents": dict(zip(COLUMNS, (0.018, 0.007, 0.018, None, None), strict=True)),
}
"""Table 2 of the paper: duplicates among 1M documents; repetition and copying by a judge."""


class QualityConfig(Config):
    """How many documents each column rests on; the paper's numbers where a judge is asked."""

    samples: Count = Field(default=1000, ge=1)
    """Pairs that the judge reads for relevance."""
    factuality_samples: Count = Field(default=10_000, ge=1)
    """Documents that the judge reads for factuality, of each corpus."""
    rule_samples: Count = Field(default=20_000, ge=1)
    """Documents for repetition and copying, which cost little."""
    duplicate_samples: Count = Field(default=1_000_000, ge=1)
    """N of duplicate@N: documents, of each corpus, that are compared with each other."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides which documents are drawn."""
    max_characters: int = Field(default=12_000, ge=100)
    """A judge sees no more than this of a text; how many were cut is counted."""
    max_answer_tokens: int = Field(default=16, ge=1)
    """Longest answer of the judge; a model that thinks aloud first needs more."""
    min_judged_share: float = Field(default=0.9, ge=0, le=1)
    """Share of the questions that the judge must answer in the form asked for."""
    engine: EngineConfig | None = None
    """How the judge is asked (docs/engines.md); not set: vLLM with the judge's folder."""


@dataclass
class _Drawn:
    """Of one corpus: a uniform sample in random order, signatures, and texts that were wanted."""

    documents: list[Document]
    duplicates: DuplicateSample
    wanted: dict[str, str] = field(default_factory=dict)

    @property
    def compared(self) -> int:
        """How many documents duplicate@N can compare."""
        return self.duplicates.kept


def measure_quality(
    config: QualityConfig,
    synthetic: str | Path,
    real: str | Path | None,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fill the quality table.

    Args:
        config: Samples and seeds.
        synthetic: The synthetic documents.
        real: The documents they were made from; None leaves out the real corpus and the pairs.
        engine: The judge; None leaves out its columns. A `LoggedEngine` asks nothing twice.
        progress: Is told the phase.

    Returns:
        `synthetic` and `real`: by column (`COLUMNS`, and `duplicate_repeats`: repeat an earlier
        one; `shared_passage`: a 13-token shingle in common with the source;
        `factuality_undefined`) a record of `share`, `low`, `high`, `count`, `of`, or None where
        it is not measured. `duplicate_equal`: both corpora's duplicates at one N, None where N is
        the same already. `reference`: the paper's. `cut`, `unjudged`: counts of judged texts.

    Raises:
        DataError: No documents, or a drawn one's source is not among the real ones.
        RunError: The judge gave too few answers in the form asked for.
    """
    progress = progress or Progress()
    drawn = _read(config, synthetic, frozenset(), progress)
    with_source = [d for d in _pair_documents(config, drawn) if d.source_id is not None]
    wanted = {document.source_id or "" for document in with_source}
    beside = None if real is None else _read(config, real, wanted, progress)
    figures: dict[str, Any] = {"synthetic": {}, "real": None, "duplicate_equal": None}
    if beside is not None:
        sources_of(with_source, beside.wanted, str(real))
        figures["duplicate_equal"] = _equal_duplicates(drawn, beside, progress)
        figures["real"] = _by_rule(config, beside, {}, progress)
    known = beside.wanted if beside is not None else {}
    figures["synthetic"] = _by_rule(config, drawn, known, progress)
    figures["reference"] = {name: dict(row) for name, row in REFERENCE.items()}
    figures |= {"cut": 0, "unjudged": 0}
    if engine is not None:
        _by_judge(config, drawn, beside, engine, figures, progress)
    return figures


def _pair_documents(config: QualityConfig, drawn: _Drawn) -> list[Document]:
    return drawn.documents[: max(config.samples, config.rule_samples)]


def _read(
    config: QualityConfig, source: str | Path, wanted: Iterable[str], progress: Progress
) -> _Drawn:
    most = max(config.samples, config.rule_samples, config.factuality_samples)
    heap: list[tuple[int, int, Document]] = []  # those with the smallest keys: a uniform sample
    drawn = _Drawn([], DuplicateSample(config.duplicate_samples, config.seed))
    wanted = frozenset(wanted)
    progress.phase("reading documents", unit="documents")
    count = 0
    for block in document_blocks(read_documents(source)):
        drawn.duplicates.add([document.text for document in block])
        for document in block:
            count += 1
            key = -seeded_hash(config.seed, "quality", document.id)
            if len(heap) < most:
                heapq.heappush(heap, (key, count, document))
            elif key > heap[0][0]:
                heapq.heapreplace(heap, (key, count, document))
            if document.id in wanted:
                drawn.wanted[document.id] = document.text
        progress.update(count)
    if not count:
        raise DataError("there are no documents", where=str(source), fix="Check the corpus given.")
    drawn.documents = [document for _, _, document in sorted(heap, reverse=True)]
    return drawn


def _equal_duplicates(drawn: _Drawn, beside: _Drawn, progress: Progress) -> dict[str, Any] | None:
    """Duplicates of both at the N that both have; None where it is each one's own N."""
    among = min(drawn.compared, beside.compared)
    if drawn.compared == beside.compared:
        return None
    found = {}
    for name, corpus in (("synthetic", drawn), ("real", beside)):
        count = corpus.duplicates.count(among, progress)
        found[name] = share_record(count.with_duplicate, count.documents)
    return found


def _by_rule(
    config: QualityConfig, drawn: _Drawn, sources: Mapping[str, str], progress: Progress
) -> dict[str, Any]:
    """The columns that need no judge; what needs pairs is None without any."""
    progress.phase("counting")
    looked_at = drawn.documents[: config.rule_samples]
    pairs = [(d.text, sources[d.source_id or ""]) for d in looked_at if d.source_id in sources]
    duplicates = drawn.duplicates.count(progress=progress)
    return {
        "repetition": _share(repeats_shingle(document.text) for document in looked_at),
        "duplicate": share_record(duplicates.with_duplicate, duplicates.documents),
        "non_factual": None,
        "irrelevance": None,
        "copying": _share(is_near_copy(text, source) for text, source in pairs),
        "duplicate_repeats": share_record(duplicates.repeats, duplicates.documents),
        "shared_passage": _share(shares_shingle(source, text) for text, source in pairs),
        "factuality_undefined": None,
    }


def _by_judge(
    config: QualityConfig,
    drawn: _Drawn,
    beside: _Drawn | None,
    engine: Engine,
    figures: dict[str, Any],
    progress: Progress,
) -> None:
    """Add the judge's columns to `figures`."""
    given: list[Verdicts] = []

    def ask(name: str, judgement: Judgement, rows: list[dict[str, str]]) -> Verdicts:
        progress.phase(f"judging {name}", len(rows), "documents")
        limit = config.max_characters
        figures["cut"] += sum(any(len(text) > limit for text in row.values()) for row in rows)
        cut = [{name: text[:limit] for name, text in row.items()} for row in rows]
        given.append(judge(judgement, cut, engine, config.max_answer_tokens))
        return given[-1]

    for name, corpus in (("synthetic", drawn), ("real", beside)):
        if corpus is not None:
            texts = [{"text": d.text} for d in corpus.documents[: config.factuality_samples]]
            found = ask(f"factuality of {name} documents", FACTUALITY, texts)
            figures[name]["non_factual"] = share_record(found.labels["error"], found.judged)
            figures[name]["factuality_undefined"] = share_record(
                found.labels["undefined"], found.judged
            )
    if beside is not None:
        rows = [
            {"source": beside.wanted[d.source_id], "text": d.text}
            for d in drawn.documents[: config.samples]
            if d.source_id is not None
        ]
        found = ask("relevance", RELEVANCE, rows)
        figures["synthetic"]["irrelevance"] = share_record(found.labels["irrelevant"], found.judged)
    refuse_unjudged(given, config.min_judged_share)
    figures["unjudged"] = sum(verdicts.asked - verdicts.judged for verdicts in given)


def refuse_unjudged(given: Iterable[Verdicts], least: float) -> None:
    """Refuse a judge that answers another question than it was asked.

    Raises:
        RunError: Fewer than the share `least` of all answers count.
    """
    verdicts = list(given)
    asked, judged = sum(v.asked for v in verdicts), sum(v.judged for v in verdicts)
    if judged < least * asked:
        raise RunError(
            f"the judge answered {judged:,} of {asked:,} questions in the form asked for: "
            f"{sum(v.unparseable for v in verdicts):,} answers are none of the labels or were "
            f"cut, {sum(v.failed for v in verdicts):,} failed",
            fix="Use a stronger judge, raise max_answer_tokens, or lower min_judged_share.",
        )


def _share(values: Iterable[bool]) -> dict[str, Any] | None:
    found = list(values)
    return share_record(sum(found), len(found))
