"""Axes of the charts: round tick values and positions."""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Frame:
    """The drawing area of a chart, in SVG units.

    Attributes:
        width: Of the whole picture.
        height: Of the whole picture.
        left: Space before the area; likewise the others.
        right: See `left`.
        top: See `left`.
        bottom: See `left`.
    """

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    @property
    def x0(self) -> int:
        """Left edge."""
        return self.left

    @property
    def x1(self) -> int:
        """Right edge."""
        return self.width - self.right

    @property
    def y0(self) -> int:
        """Top edge."""
        return self.top

    @property
    def y1(self) -> int:
        """Bottom edge."""
        return self.height - self.bottom


def linear(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    """Map values from `low`..`high` to positions `start`..`stop`."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (stop - start)


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """About `wanted` round values (1, 2, 2.5 or 5 times a power of ten) inside `low`..`high`."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, wanted)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [0.0 if i == 0 else i * step for i in range(first, last + 1)]


def tick_label(value: float, step: float) -> str:
    """A tick's value with as many decimals as the step between ticks needs."""
    decimals = max(0, -math.floor(math.log10(abs(step)) + 1e-9)) if step else 0
    if step and round(step * 10**decimals, 6) % 1:
        decimals += 1  # steps of 2.5
    text = f"{value:.{decimals}f}"
    return text.replace("-", "\u2212")


def spread(positions: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move label positions apart to at least `gap`, as little as possible, inside low..high."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    moved = [min(max(positions[i], low), high) for i in order]
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    overflow = moved[-1] - high if moved else 0
    if overflow > 0:
        moved[-1] -= overflow
        for i in range(len(moved) - 2, -1, -1):
            moved[i] = min(moved[i], moved[i + 1] - gap)
    result = [0.0] * len(positions)
    for place, i in enumerate(order):
        result[i] = moved[place]
    return result
