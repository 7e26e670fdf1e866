"""Fill the templates: one self-contained HTML file, without scripts, that loads nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from megatron_synth.report import words
from megatron_synth.report.charts import (
    Line,
    interval_chart,
    leaves_frame,
    line_chart,
    similarity_chart,
)
from megatron_synth.report.data import Arm, Curve, ReportData
from megatron_synth.report.verdict import answer
from megatron_synth.runs import atomic_write

_TEMPLATES = Path(__file__).parent / "templates"
_SECTIONS = (
    ("arms", "Arms"),
    ("curves", "Loss curves"),
    ("corpus", "Organic text"),
    ("ledger", "Ledger against plan"),
    ("pairs", "Related pairs"),
    ("tuning", "Synthesizer tuning"),
    ("synthesis", "Synthetic text"),
    ("cost", "Cost"),
    ("steps", "Steps"),
    ("provenance", "Environment and config"),
)
_EXTRA = ("extra-1", "extra-2")
_STREAMS = ("method", "oracle", "extra-1", "extra-2", "baseline")
_X = "tokens trained"
_Y = "loss, nats per token"


@dataclass(frozen=True)
class _Chart:
    title: str
    lines: Sequence[Line]
    svg: Markup
    caption: str


def write_report(data: ReportData, path: Path) -> None:
    """Write the report, atomically.

    The file needs no network and no script: it opens from disk. Text from documents, configs and
    names is escaped, and control or direction-changing characters are shown by their code.

    Raises:
        RunError: The disk is full, or the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as handle:
        handle.write(render(data))


def render(data: ReportData) -> str:
    """The page as one string."""
    styles = _styles(data.arms)
    baseline = next((arm for arm in data.arms if arm.role == "baseline"), None)
    different = [arm for arm in data.arms if arm.difference]
    titles = {arm.name: arm.title for arm in data.arms}
    ledger: dict[str, list[Any]] = {}
    for row in data.ledger:
        ledger.setdefault(titles.get(row.arm, row.arm), []).append(row)
    charts = {
        "differences": interval_chart(
            [(arm.title, styles[arm.name], arm.difference) for arm in different if arm.difference],
            baseline.title if baseline else "baseline",
            "Differences in held-out loss: "
            + "; ".join(
                f"{arm.title} {words.signed(arm.difference.estimate)}, from "
                f"{words.signed(arm.difference.low)} to {words.signed(arm.difference.high)}"
                for arm in different
                if arm.difference
            ),
        ),
        "curves": _curves(data, styles, titles),
        "tuning": _tuning(data),
        "similarity": similarity_chart(
            data.pairs.histogram,
            data.pairs.threshold,
            f"Histogram of similarities; threshold {data.pairs.threshold:.3f}",
        )
        if data.pairs and data.pairs.histogram
        else "",
    }
    flops = [cost.flops for cost in data.costs if cost.flops]
    return (
        _environment()
        .get_template("page.html")
        .render(
            data=data,
            answer=answer(data),
            sections=_SECTIONS,
            style=Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),
            styles=styles,
            baseline=baseline,
            confidence=different[0].difference.confidence
            if different[0:1] and different[0].difference
            else 0.95,
            has_recovery=any(arm.recovery for arm in data.arms),
            charts=charts,
            ledger=list(ledger.items()),
            unequal=sum(row.used_tokens != row.planned_tokens for row in data.ledger),
            longest=max((cost.seconds for cost in data.costs), default=0),
            flops=sum(flops) if flops else None,
        )
    )


def _curves(data: ReportData, styles: dict[str, str], titles: dict[str, str]) -> list[_Chart]:
    """All arms together by kind, then each arm that trained on several streams by itself."""
    charts = []
    for kind, title in (("train", "Training loss"), ("validation", "Validation loss")):
        lines = [
            _line(curve, titles.get(curve.arm, curve.arm), styles.get(curve.arm, "extra-1"))
            for curve in data.curves
            if curve.kind == kind and not curve.stream
        ]
        if lines:
            caption = (
                "Training loss is of each arm’s own mix of text: an arm that sees D more often "
                "or trains on its own model’s text has a lower one without being better."
                if kind == "train"
                else "Loss on held-out documents while training."
            )
            charts.append(_chart(title, lines, caption))
    for name, title in titles.items():
        own = [c for c in data.curves if c.arm == name and c.stream and c.kind == "train"]
        if own:
            lines = [_line(c, c.stream, _STREAMS[i % len(_STREAMS)]) for i, c in enumerate(own)]
            charts.append(
                _chart(f"{title} by stream", lines, "Training loss on the windows of each corpus.")
            )
    return charts


def _tuning(data: ReportData) -> list[_Chart]:
    if data.tuning is None or not data.tuning.curves:
        return []
    names = {"train": "training", "validation": "held-out"}
    lines = [
        _line(curve, curve.stream or names[curve.kind], _STREAMS[i % len(_STREAMS)])
        for i, curve in enumerate(data.tuning.curves)
    ]
    held_out = any(curve.kind == "validation" for curve in data.tuning.curves)
    of = "training and of held-out pairs" if held_out else "a pair"
    caption = f"Loss on the second document of {of}, given the first."
    return [_chart("Synthesizer tuning", lines, caption)]


def _line(curve: Curve, label: str, style: str) -> Line:
    return Line(label, style, curve.tokens, curve.loss, dots=curve.kind == "validation")


def _chart(title: str, lines: Sequence[Line], caption: str) -> _Chart:
    lines = [line for line in lines if len(line.x)]
    ends = "; ".join(f"{line.label} ends at {words.plain(line.y[-1], 3)}" for line in lines)
    if any(leaves_frame(line, lines) for line in lines):
        caption += " The steep beginning is cut off."
    return _Chart(title, lines, line_chart(lines, _X, _Y, f"{title}: {ends}"), caption)


def _styles(arms: Sequence[Arm]) -> dict[str, str]:
    """A CSS class for each arm: its role's, or one of the others where that is taken."""
    styles: dict[str, str] = {}
    for arm in arms:
        style = arm.role if arm.role != "other" else _EXTRA[0]
        if style in styles.values():
            free = [extra for extra in _EXTRA if extra not in styles.values()]
            style = free[0] if free else _EXTRA[-1]
        styles[arm.name] = style
    return styles


def _perplexity(loss: float | None) -> str:
    if loss is None:
        return words.NONE
    return f"{math.exp(loss):,.1f}" if loss < 50 else f"over {math.exp(50):.0e}"


def _rate(value: float | None) -> str:
    return words.NONE if value is None else words.count(round(value))


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=words.count,
        count_rate=_rate,
        duration=words.duration,
        percent=words.percent,
        perplexity=_perplexity,
        plain=words.plain,
        power=words.power,
        signed=words.signed,
        visible=words.visible,
        whole=words.whole,
    )
    return environment
