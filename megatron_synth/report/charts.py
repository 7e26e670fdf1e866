"""Charts as inline SVG: every colour is a CSS class, so one drawing serves light, dark and print.

Each chart is drawn twice, for a wide and for a narrow page; the style sheet shows one of them.
All text is escaped by `Markup.format` and shown through `visible`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from megatron_synth.config import format_count
from megatron_synth.report.axes import Frame, linear, spread, tick_label, ticks
from megatron_synth.report.data import Histogram, Range
from megatron_synth.report.words import signed, visible

_SKIPPED = 0.04


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: Its name.
        style: CSS class that gives colour and dashes: `baseline`, `method`, `oracle`, `extra-1`…
        x: Rising.
        y: As many.
        dots: Draw points where the values stand, as for validation losses.
    """

    label: str
    style: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, title: str) -> Markup:
    """Losses over tokens. The steep beginning (the first 4 % of x) may leave the frame."""
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return Markup("")
    return _both(
        title,
        _lines(lines, Frame(880, 340, 46, 96, 30, 44), x_label, y_label, named=True),
        _lines(lines, Frame(360, 270, 40, 12, 28, 42), x_label, y_label, named=False),
    )


def _lines(
    lines: Sequence[Line], frame: Frame, x_label: str, y_label: str, *, named: bool
) -> Markup:
    (x_low, x_high), (y_low, y_high) = _ranges(lines)
    at_x = linear(x_low, x_high, frame.x0, frame.x1)
    at_y = linear(y_low, y_high, frame.y1, frame.y0)
    parts = [
        _grid(frame, at_x, at_y, (x_low, x_high), (y_low, y_high)),
        _titles(frame, x_label, y_label),
    ]
    # An inner svg clips what leaves it, without an id that two charts could share.
    window = (frame.x0, frame.y0 - 4, frame.x1 - frame.x0 + 5, frame.y1 - frame.y0 + 8)
    drawn = []
    ends = []
    for line in lines:
        points = [(at_x(x), at_y(y)) for x, y in _thin(line.x, line.y, frame.width // 3)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        drawn.append(Markup('<polyline class="line {}" points="{}"/>').format(line.style, path))
        if line.dots:
            drawn += [
                Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(
                    line.style, x, y
                )
                for x, y in points
            ]
        ends.append(points[-1][1])
    parts.append(
        Markup(
            '<svg x="{0}" y="{1}" width="{2}" height="{3}" viewBox="{0} {1} {2} {3}">{4}</svg>'
        ).format(*window, Markup("").join(drawn))
    )
    if named:
        for line, y in zip(lines, spread(ends, 16, frame.y0, frame.y1), strict=True):
            parts.append(
                Markup('<text class="label {}" x="{}" y="{:.1f}">{}</text>').format(
                    line.style, frame.x1 + 8, y + 4, _short(line.label, 13)
                )
            )
    return _svg(frame, parts)


def _ranges(lines: Sequence[Line]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ranges of both axes; y holds all values but those of the first 4 % of x."""
    x_high = max(line.x[-1] for line in lines)
    x_low = min(0.0, *(line.x[0] for line in lines))
    start = x_low + _SKIPPED * (x_high - x_low)
    seen = [y for line in lines for x, y in zip(line.x, line.y, strict=True) if x >= start]
    margin = 0.06 * (max(seen) - min(seen)) or 0.1
    return (x_low, x_high), (min(seen) - margin, max(seen) + margin)


def leaves_frame(line: Line, lines: Sequence[Line]) -> bool:
    """Whether part of `line` is above the frame of a chart of `lines`."""
    return max(line.y) > _ranges(lines)[1][1]


def interval_chart(rows: Sequence[tuple[str, str, Range]], baseline: str, title: str) -> Markup:
    """Differences to the baseline with their intervals: (label, style, range) by row."""
    if not rows:
        return Markup("")
    height = 40 * len(rows) + 62
    return _both(
        title,
        _intervals(rows, baseline, Frame(880, height, 110, 150, 28, 34), wide=True),
        _intervals(rows, baseline, Frame(360, height + 14 * len(rows), 14, 14, 30, 34), wide=False),
    )


def _intervals(
    rows: Sequence[tuple[str, str, Range]], baseline: str, frame: Frame, *, wide: bool
) -> Markup:
    low = min(0.0, *(r.low for _, _, r in rows))
    high = max(0.0, *(r.high for _, _, r in rows))
    margin = 0.08 * (high - low) or 0.01
    low, high = low - margin, high + margin
    at = linear(low, high, frame.x0, frame.x1)
    marks = ticks(low, high, 6 if wide else 3)
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    parts = []
    for mark in marks:
        parts.append(
            Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(
                at(mark), frame.y0, frame.y1
            )
        )
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                at(mark), frame.y1 + 18, ("+" if mark > 0 else "") + tick_label(mark, step)
            )
        )
    parts.append(
        Markup('<line class="zero" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(
            at(0), frame.y0 - 6, frame.y1
        )
    )
    anchor = (
        "end" if at(0) > 0.8 * frame.width else "start" if at(0) < 0.2 * frame.width else "middle"
    )
    parts.append(
        Markup('<text class="tick strong" x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(
            at(0), frame.y0 - 12, anchor, _short(baseline, 18)
        )
    )
    room = (frame.y1 - frame.y0) / len(rows)
    for number, (label, style, value) in enumerate(rows):
        y = frame.y0 + room * (number + 0.5) + (0 if wide else 8)
        figures = signed(value.estimate)
        if wide:
            parts.append(
                Markup(
                    '<text class="label {}" x="{}" y="{:.1f}" text-anchor="end">{}</text>'
                ).format(style, frame.x0 - 12, y + 4, _short(label, 14))
            )
            parts.append(
                Markup('<text class="value" x="{}" y="{:.1f}">{}</text>').format(
                    frame.x1 + 12, y + 4, figures
                )
            )
        else:
            parts.append(
                Markup('<text class="label {}" x="{}" y="{:.1f}">{} {}</text>').format(
                    style, frame.x0, y - 12, _short(label, 20), figures
                )
            )
        parts.append(
            Markup(
                '<line class="whisker {}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
            ).format(style, at(value.low), at(value.high), y, y)
        )
        parts.append(
            Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="5"/>').format(
                style, at(value.estimate), y
            )
        )
    return _svg(frame, parts)


def similarity_chart(histogram: Histogram, threshold: float, title: str) -> Markup:
    """Similarities of all neighbours and of the pairs kept, counts on a logarithmic axis."""
    return _both(
        title,
        _bars(histogram, threshold, Frame(880, 300, 56, 20, 34, 44), wide=True),
        _bars(histogram, threshold, Frame(360, 250, 46, 12, 34, 42), wide=False),
    )


def _bars(histogram: Histogram, threshold: float, frame: Frame, *, wide: bool) -> Markup:
    edges = histogram.edges
    top = max(1, *histogram.neighbours, *histogram.pairs)
    at_x = linear(edges[0], edges[-1], frame.x0, frame.x1)
    # One stands a little above the axis, so that a bin with one pair can be seen.
    at_y = linear(-0.15, math.log10(top) + 0.05, frame.y1, frame.y0)
    parts = []
    for exponent in range(int(math.log10(top)) + 1):
        y = at_y(exponent)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
                frame.x0, frame.x1, y, y
            )
        )
        parts.append(
            Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                frame.x0 - 8, y + 4, format_count(10**exponent)
            )
        )
    for style, counts in (("all", histogram.neighbours), ("kept", histogram.pairs)):
        for number, amount in enumerate(counts):
            if amount:
                x, y = at_x(edges[number]), at_y(math.log10(amount))
                full = at_x(edges[number + 1]) - x
                width = full - (1 if full > 6 else 0)
                parts.append(
                    Markup(
                        '<rect class="bar {}" x="{:.1f}" y="{:.1f}" '
                        'width="{:.1f}" height="{:.1f}"/>'
                    ).format(style, x, y, width, frame.y1 - y)
                )
    marks = ticks(edges[0], edges[-1], 8 if wide else 4)
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    for value in marks:
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                at_x(value), frame.y1 + 18, tick_label(value, step)
            )
        )
    if edges[0] <= threshold <= edges[-1]:
        x = at_x(threshold)
        anchor = "end" if x > (frame.x0 + frame.x1) / 2 else "start"
        parts.append(
            Markup('<line class="zero" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(
                x, frame.y0 - 8, frame.y1
            )
        )
        parts.append(
            Markup('<text class="tick strong" x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(
                x + (-6 if anchor == "end" else 6),
                frame.y0 - 2,
                anchor,
                f"threshold {threshold:.3f}",
            )
        )
    parts.append(
        Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            frame.x0, frame.x1, frame.y1, frame.y1
        )
    )
    parts.append(_titles(frame, "cosine similarity", "relations (log scale)"))
    return _svg(frame, parts)


def _grid(
    frame: Frame,
    at_x: object,
    at_y: object,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> Markup:
    assert callable(at_x)
    assert callable(at_y)
    parts = []
    marks = ticks(*y_range, 5)
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    for value in marks:
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
                frame.x0, frame.x1, at_y(value), at_y(value)
            )
        )
        parts.append(
            Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                frame.x0 - 8, at_y(value) + 4, tick_label(value, step)
            )
        )
    for value in ticks(*x_range, 6 if frame.width > 500 else 3):
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                at_x(value), frame.y1 + 18, format_count(value)
            )
        )
    parts.append(
        Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            frame.x0, frame.x1, frame.y1, frame.y1
        )
    )
    return Markup("").join(parts)


def _titles(frame: Frame, x_label: str, y_label: str) -> Markup:
    return Markup(
        '<text class="name" x="{}" y="{}" text-anchor="end">{}</text>'
        '<text class="name" x="{}" y="{}">{}</text>'
    ).format(frame.x1, frame.height - 6, x_label, 0 if frame.width < 500 else 2, 12, y_label)


def _thin(x: Sequence[float], y: Sequence[float], points: int) -> list[tuple[float, float]]:
    """At most `points` points: means over equal numbers of neighbours."""
    if len(x) <= points:
        return list(zip(x, y, strict=True))
    size = math.ceil(len(x) / points)
    blocks = [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]
    return [(sum(a) / len(a), sum(b) / len(b)) for a, b in blocks]


def _short(text: str, limit: int) -> str:
    text = visible(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _svg(frame: Frame, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" aria-hidden="true" focusable="false">{}</svg>').format(
        frame.width, frame.height, Markup("").join(parts)
    )


def _both(title: str, wide: Markup, narrow: Markup) -> Markup:
    return Markup(
        '<div class="chart" role="img" aria-label="{}">'
        '<div class="wide">{}</div><div class="narrow">{}</div></div>'
    ).format(visible(title), wide, narrow)
