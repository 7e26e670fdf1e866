"""Mideval inside a synthesis step: the first documents are looked at before the rest is paid for.

The sample is the beginning of shard 0, which the step needs anyway: its answers lie in the shard's
own request log, and nothing is asked twice. Judged are the documents that pass the filters, those
for repetition and copying apart: so the figures are the generator's own.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_synth.config import RunError
from megatron_synth.corpus import document_writer
from megatron_synth.engines import Engine, RequestLog
from megatron_synth.runs import Progress, get_logger, hash_json, write_json
from megatron_synth.synthesis.config import SynthesisConfig
from megatron_synth.synthesis.contract import Method
from megatron_synth.synthesis.filters import FilterContext
from megatron_synth.synthesis.judges import judge_identity, open_judge
from megatron_synth.synthesis.mideval import (
    Pair,
    check_figures,
    count_near_duplicates,
    measure,
)
from megatron_synth.synthesis.mideval_config import LIMITS, GateConfig
from megatron_synth.synthesis.places import Places
from megatron_synth.synthesis.shard import Outcome, Shard

REPORT = "mideval.json"
SAMPLE = "mideval.jsonl.zst"
_FREE = frozenset({None, "repeated_shingle", "copies_source"})
"""What the filters say of documents whose figures are measured."""
_DECIDES_NO_FIGURE = {"min_kept_share", "min_judged_share", *LIMITS.values()}
_JUDGE = {"engine", "judge"}
"""Known by what it is, not by where it lies."""
_HASH_DIGITS = 12

_LOG = get_logger(__name__)


def pass_gate(
    config: SynthesisConfig,
    out: Path,
    work: Path,
    run: str,
    product: str,
    method: Method,
    context: FilterContext,
    generate: Callable[[Places, int], None],
    progress: Progress,
) -> None:
    """Make the sample, measure it, write the report, and stop where a limit is broken.

    A gate that was measured before is not measured again: other limits cost nothing. Each answer
    of the judge is committed to a log before it counts, so that a killed gate asks for the rest.

    Args:
        config: With `mideval` set.
        out: Gets `mideval.json` (figures, limits, what is broken) and `mideval.jsonl.zst` (the
            sample, dropped documents with `metadata.drop_reason`).
        work: The step's working folder.
        run: See `identity.run_hash`.
        product: See `identity.product_hash`.
        method: Of the step.
        context: Of its filters.
        generate: Makes the first so many documents of shard 0, with logs and parts at the places
            that it is given.
        progress: Is told the phase.

    Raises:
        RunError: A limit is broken; or see `Shard.run`, `open_judge`.
    """
    gate = config.mideval
    assert gate is not None
    judge = judge_identity(gate.engine, gate.judge)
    settings = gate.model_dump(mode="json", exclude=_DECIDES_NO_FIGURE | _JUDGE)
    key = hash_json([run, product, settings, judge])
    report = _earlier(out / REPORT, key)
    if report is None:
        parts = work / f"mideval-{product[:12]}-{gate.samples}"
        parts.mkdir(exist_ok=True)
        places = Places(out.absolute(), parts)
        if not places.is_done(0):
            generate(places, gate.samples)
        progress.phase("checking the first documents")
        with RequestLog(places.log(0), run) as log:
            shard = Shard(config, 0, method, log, context=context, sample=gate.samples)
            outcomes = list(shard.product())
        _write_sample(out / SAMPLE, outcomes)
        report = {"key": key, **_measure(gate, judge, method, outcomes, work, progress)}
    broken = _broken(gate, report)
    limits = {name: getattr(gate, name) for name in ("min_kept_share", *LIMITS.values())}
    write_json(
        out / REPORT,
        {
            **report,
            "limits": {name: limit for name, limit in limits.items() if limit is not None},
            "stopped_by": broken[0] if broken else None,
        },
    )
    if broken:
        what, fix = broken
        raise RunError(
            f"{what} ({report['kept']:,} of the first {report['documents']:,} documents passed "
            "the filters)",
            where=out / REPORT,
            fix=f"{fix} They lie in {SAMPLE} beside the report. With other limits in "
            "synthesis.mideval the same command goes on, and nothing is asked or judged again.",
        )
    _LOG.info("mideval passed: %s", out / REPORT)


def _earlier(path: Path, key: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    # What the judge failed at is asked anew where the gate has not passed without it.
    unasked = report.get("stopped_by") and (report.get("figures") or {}).get("failed")
    return report if report.get("key") == key and not unasked else None


def _write_sample(path: Path, outcomes: list[Outcome]) -> None:
    with document_writer(path) as sink:
        for outcome in outcomes:
            document = outcome.document
            if outcome.reason is not None:
                document = replace(
                    document,
                    text=document.text.replace("\0", "\u2400"),  # could not be read back
                    metadata={**document.metadata, "drop_reason": outcome.reason},
                )
            sink.write(document)


def _measure(
    gate: GateConfig,
    judge: str | None,
    method: Method,
    outcomes: list[Outcome],
    work: Path,
    progress: Progress,
) -> dict[str, Any]:
    dropped = Counter(outcome.reason for outcome in outcomes if outcome.reason is not None)
    report: dict[str, Any] = {
        "method": method.name,
        "generator": outcomes[0].document.generator if outcomes else None,
        "judge": _judge_name(gate, judge),
        "documents": len(outcomes),
        "kept": len(outcomes) - dropped.total(),
        "dropped": dict(dropped.most_common()),
        "figures": None,
    }
    pairs = [
        Pair(o.document, o.source_text if o.item.source_id is not None else None)
        for o in outcomes
        if o.reason in _FREE
    ]
    if not pairs:
        return report
    documents = [pair.document for pair in pairs]
    near = count_near_duplicates(documents) / len(documents)
    engine: Engine | None = None
    if judge is not None:
        log = work / f"judge-{hash_json([judge, gate.max_answer_tokens])[:_HASH_DIGITS]}.log"
        engine = open_judge(gate.engine, gate.judge, log, gate.max_answer_tokens)
    try:
        figures = measure(gate, pairs, documents, near, len(documents), engine, progress)
    finally:
        if engine is not None:
            engine.close()
    return {**report, "figures": figures}


def _broken(gate: GateConfig, report: dict[str, Any]) -> tuple[str, str] | None:
    documents, kept = report["documents"], report["kept"]
    if report["figures"] is None:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in report["dropped"].items()) or "none"
        return (
            f"mideval stops here: no document is left to look at; dropped: {reasons}",
            "The generator may be too weak for the method, or synthesis.filters too strict.",
        )
    more = []
    if gate.min_kept_share is not None and kept < gate.min_kept_share * documents:
        more.append(f"kept {kept / documents:.1%} (min_kept_share {gate.min_kept_share:.1%})")
    return check_figures(gate, report["figures"], more)


def _judge_name(gate: GateConfig, judge: str | None) -> str | None:
    if judge is None:
        return None
    if gate.engine is not None and gate.engine.kind == "endpoint":
        name = gate.engine.model
    else:
        assert gate.judge is not None
        name = gate.judge.name
    return f"{name}@{judge[:_HASH_DIGITS]}"
