"""A run folder's manifests, metrics and ledgers, as the data of its report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from megatron_synth.blending import Plan
from megatron_synth.config import format_count
from megatron_synth.experiments.config import ExperimentConfig
from megatron_synth.experiments.kinds import COMPARISON, HELD_OUT_PAIRS, PLAN
from megatron_synth.experiments.run_folder import RunFolder
from megatron_synth.experiments.samples import synthetic_samples
from megatron_synth.experiments.status import StepStatus, status_of
from megatron_synth.report import (
    Arm,
    Corpus,
    Cost,
    Curve,
    Drop,
    HeldOut,
    Histogram,
    LedgerRow,
    Pairs,
    Range,
    ReportData,
    StepRow,
    Synthesis,
    TextPair,
    Tuning,
    write_report,
)
from megatron_synth.runs import Manifest, read_metrics
from megatron_synth.runs.manifest import environment, utc_now

_STATES: Mapping[str, Any] = {
    "done": "done", "running": "running", "failed": "failed", "stopped": "waiting",
    "ready": "waiting", "waiting": "waiting",
}  # fmt: skip


def write_run_report(run: RunFolder) -> Path:
    """Write `report.html` into the run folder; any state of the run has one.

    Returns:
        Where it is.
    """
    write_report(collect(run), run.report)
    return run.report.resolve()


def collect(run: RunFolder) -> ReportData:
    """Everything that the report shows; what is not made yet is left out."""
    config = run.config()
    resolved = run.graph().resolve(run.store)
    statuses = status_of(run, resolved)
    done = {name: s.manifest for name, s in resolved.items() if s.manifest is not None}
    comparison = _comparison(done)
    compared = {arm["name"]: arm for arm in comparison.get("arms", [])}
    first = next(iter(compared.values()), None)
    baseline = done.get(f"train.{config.baseline}")
    return ReportData(
        question=config.question,
        title=config.name,
        run_folder=str(run.path),
        created=utc_now(),
        finished=all(s.state == "done" for s in statuses),
        parameters=baseline.counts["parameters"]["total"] if baseline else None,
        notes=[*config.notes, *_beside_the_budget(done)],
        held_out=_held_out(config, first, done.get("corpus.split")),
        arms=[_arm(config, name, done, comparison, compared, statuses) for name in config.arms],
        curves=[
            c for name in config.arms for c in _curves(name, done.get(f"train.{name}"), config)
        ],
        ledger=[row for name in config.arms for row in _ledger(name, done)],
        corpus=_corpus(config, done),
        pairs=_pairs(done.get("pairs")),
        tuning=_tuning(done.get("train.synthesizer")),
        synthesis=_synthesis(config, done),
        costs=[_cost(manifest) for manifest in done.values()],
        steps=[_step(s, done.get(s.name)) for s in statuses],
        environment=environment(),
        config_yaml=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
    )


def _beside_the_budget(done: Mapping[str, Manifest]) -> list[str]:
    """What synthetic text cost beyond the tokens that all arms share."""
    tuning, synthesis = done.get("train.synthesizer"), done.get("synthesize")
    if tuning is None or synthesis is None:
        return []
    return [
        "Equal compute means equal tokens trained by every arm. Making the synthetic text came on "
        f"top: {format_count(tuning.counts['tokens'])} token positions of synthesizer tuning, "
        f"{format_count(synthesis.counts['output_tokens'])} generated tokens, and one pass over D "
        "for the embeddings."
    ]


def _comparison(done: Mapping[str, Manifest]) -> dict[str, Any]:
    if "compare" not in done:
        return {}
    text = (done["compare"].folder / COMPARISON).read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def _held_out(
    config: ExperimentConfig, arm: dict[str, Any] | None, split: Manifest | None
) -> HeldOut | None:
    if arm is None or split is None:
        return None
    grouped = bool(config.split.group and split.counts["held_out_groups"])
    by = f"of other {config.split.group}s " if grouped else ""
    return HeldOut(
        documents=arm["documents"],
        tokens=arm["tokens"],
        description=f"organic documents {by}that no arm was trained on",
        clusters=arm["clusters"] if grouped else None,
        cluster=(config.split.group or "") if grouped else "",
    )


def _arm(
    config: ExperimentConfig,
    name: str,
    done: Mapping[str, Manifest],
    comparison: dict[str, Any],
    compared: Mapping[str, dict[str, Any]],
    statuses: list[StepStatus],
) -> Arm:
    arm = config.arms[name]
    evaluated = done.get(f"evaluate.{name}")
    figures = compared.get(name, {"loss": evaluated.counts["loss"]} if evaluated else {})
    recovery = comparison.get("recovery", {}).get(name, {})
    values: dict[str, Any] = {}
    if f"plan.{name}" in done:
        plan = Plan.load(done[f"plan.{name}"].folder / PLAN)
        by_name = {c.name: c for c in plan.corpora}
        values["tokens"] = plan.tokens
        values["synthetic_share"] = plan.share("synthetic") if "synthetic" in by_name else 0.0
        values["epochs"] = by_name["organic"].epochs if "organic" in by_name else None
        organic = [c for c in plan.corpora if c.name != "synthetic"]
        values["unique_tokens"] = sum(
            min(c.windows, c.windows_per_epoch) * plan.sequence_length for c in organic
        )
    last = next(s for s in statuses if s.name == f"evaluate.{name}")
    training = next(s for s in statuses if s.name == f"train.{name}")
    shown = training if last.state == "waiting" else last
    return Arm(
        name=name,
        label=arm.label,
        role=arm.role,
        method="sbp" if "synthetic" in arm.corpora else "",
        state=_STATES[shown.state],
        loss=figures.get("loss"),
        loss_error=figures.get("error"),
        difference=_range(figures.get("difference")),
        recovery=_range(recovery.get("interval")),
        recovery_note=recovery.get("reason", ""),
        **values,
    )


def _range(interval: dict[str, Any] | None) -> Range | None:
    return None if interval is None else Range(**interval)


def _curves(name: str, manifest: Manifest | None, config: ExperimentConfig) -> list[Curve]:
    if manifest is None:
        return []
    records = read_metrics(manifest.folder / "metrics.jsonl")
    training = [r for r in records if "loss" in r]
    curves = [_curve(name, training)]
    corpora = sorted({c for r in training for c in r.get("loss_by_dataset", {})})
    for corpus in corpora if len(corpora) > 1 else []:
        rows = [
            {"tokens": r["tokens"], "loss": r["loss_by_dataset"][corpus]}
            for r in training
            if corpus in r["loss_by_dataset"]
        ]
        curves.append(_curve(name, rows, stream=corpus))
    validated = [
        {"tokens": r["tokens"], "loss": r["validation"]["validation"]}
        for r in records
        if r.get("validation")
    ]
    if validated and config.evaluation.curve_windows:
        curves.append(_curve(name, validated, kind="validation"))
    return curves


def _curve(arm: str, rows: list[dict[str, Any]], **other: Any) -> Curve:
    tokens, losses = [r["tokens"] for r in rows], [r["loss"] for r in rows]
    return Curve(arm=arm, tokens=tokens, loss=losses, **other)


def _ledger(arm: str, done: Mapping[str, Manifest]) -> list[LedgerRow]:
    plan_step, training = done.get(f"plan.{arm}"), done.get(f"train.{arm}")
    if plan_step is None:
        return []
    plan = Plan.load(plan_step.folder / PLAN)
    accounts = training.counts["ledger"]["corpora"] if training else {}
    audited = done.get(f"audit.{arm}")
    counted = audited.counts["corpora"] if audited else {}
    rows = []
    for corpus in plan.corpora:
        account = {**accounts.get(corpus.name, {})}
        if corpus.name in counted:  # what was served, counted from the windows themselves
            account["tokens"] = counted[corpus.name]["tokens"]
        rows.append(
            LedgerRow(
                arm=arm,
                corpus=corpus.name,
                synthetic=corpus.name == "synthetic",
                corpus_tokens=corpus.tokens,
                planned_tokens=corpus.windows * plan.sequence_length,
                used_tokens=account.get("tokens", 0),
                planned_epochs=corpus.epochs,
                used_epochs=account.get("epochs", 0.0),
                cap_epochs=corpus.max_epochs,
                dropped_tokens=account.get("dropped_tokens"),
            )
        )
    return rows


_LEFT_OUT_BY_IMPORT = (
    *("quarantined", "too_short", "too_long", "too_few_tokens", "too_many_tokens"),
    *("duplicates", "near_duplicates", "contaminated", "past_maximum"),
)
_LEFT_OUT_BY_SPLIT = {
    "validation_too_long": "held out: too long for a window",
    "validation_in_training": "held out: overlaps with training text",
    "validation_repeated": "held out: overlaps with another",
    "drawn_too_long": "for training: too long for a window",
}


def _corpus(config: ExperimentConfig, done: Mapping[str, Manifest]) -> Corpus | None:
    if "corpus.import" not in done:
        return None
    imported = done["corpus.import"].counts
    split = done["corpus.split"].counts if "corpus.split" in done else {}
    left_out = {
        **{reason: imported[reason] for reason in _LEFT_OUT_BY_IMPORT},
        **{shown: split.get(reason, 0) for reason, shown in _LEFT_OUT_BY_SPLIT.items()},
    }
    return Corpus(
        rows=imported["rows"],
        documents=imported["documents"],
        validation=split.get("validation_documents"),
        validation_asked=config.split.validation_documents,
        organic=split.get("organic_documents"),
        pool=split.get("pool_documents"),
        drops=_drops({reason: n for reason, n in left_out.items() if n}),
    )


def _pairs(manifest: Manifest | None) -> Pairs | None:
    if manifest is None:
        return None
    found = json.loads((manifest.folder / "report.json").read_text(encoding="utf-8"))
    counts = found["counts"]
    return Pairs(
        pairs=counts["pairs"],
        threshold=counts["threshold"],
        documents=counts["documents"],
        documents_as_d1=counts["documents_as_d1"],
        histogram=Histogram(**found["histogram"]),
        drops=_drops(counts["dropped"]),
        samples=[_pair_sample(s) for s in found["samples"]],
        near_duplicates=[_pair_sample(s) for s in found["near_duplicate_samples"]],
    )


def _pair_sample(sample: dict[str, Any]) -> TextPair:
    return TextPair(
        left_title=sample["d1"],
        left=sample["d1_text"],
        right_title=sample["d2"],
        right=sample["d2_text"],
        note=f"similarity {sample['similarity']:.2f}",
    )


def _drops(counts: Mapping[str, int]) -> list[Drop]:
    return [Drop(reason=reason.replace("_", " "), count=n) for reason, n in counts.items()]


def _tuning(manifest: Manifest | None) -> Tuning | None:
    if manifest is None:
        return None
    records = read_metrics(manifest.folder / "metrics.jsonl")
    curves = [_curve("synthesizer", [r for r in records if "loss" in r])]
    held_out = [
        {"tokens": r["tokens"], "loss": r["validation"][HELD_OUT_PAIRS]}
        for r in records
        if r.get("validation")
    ]
    if held_out:
        curves.append(_curve("synthesizer", held_out, kind="validation"))
    return Tuning(pairs=manifest.counts["pairs"], curves=curves)


def _synthesis(config: ExperimentConfig, done: Mapping[str, Manifest]) -> Synthesis | None:
    manifest = done.get("synthesize")
    if manifest is None or config.synthesis is None:
        return None
    counts = manifest.counts
    return Synthesis(
        generator="the synthesizer, tuned from the baseline's checkpoint; vLLM in NeMo Curator",
        sampling=f"temperature {config.synthesis.temperature:g}, top-p {config.synthesis.top_p:g}",
        requested=counts["requests"],
        kept=counts["documents"],
        tokens=counts["tokens"],
        drops=_drops(counts["dropped"]),
        samples=synthetic_samples(manifest.folder, done["corpus.split"].folder),
    )


def _cost(manifest: Manifest) -> Cost:
    counts = manifest.counts
    trained = manifest.kind in ("train", "tune_synthesizer")
    tokens = counts.get("output_tokens") if manifest.kind == "synthesize" else None
    return Cost(
        step=manifest.step,
        seconds=manifest.seconds,
        tokens=counts["tokens"] if trained else tokens,
        flops=counts["flops"] if trained else None,
    )


def _step(status: StepStatus, manifest: Manifest | None) -> StepRow:
    return StepRow(
        name=status.name,
        state=_STATES[status.state],
        folder=f"steps/{status.folder}" if status.folder else "",
        content_hash=manifest.content_hash if manifest else "",
        seconds=status.seconds,
    )
