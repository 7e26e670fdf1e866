"""Lengths of many documents in a few figures."""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

_QUANTILES = (1, 5, 25, 50, 75, 95, 99)


class Lengths(BaseModel):
    """Lengths of all documents, in one unit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    total: int
    mean: float
    min: int
    max: int
    percentiles: dict[str, int]
    """By percent: `1`, `5`, `25`, `50`, `75`, `95`, `99`; each is the length of some document."""
    histogram: dict[str, int]
    """Documents by length: `0`, `1`, `2-3`, `4-7`, … every power of two up to the largest."""


def describe_lengths(values: Sequence[int]) -> Lengths:
    """Total, mean, percentiles (nearest rank) and a histogram by powers of two."""
    lengths = np.asarray(values, dtype=np.int64)
    if not len(lengths):
        return Lengths(total=0, mean=0.0, min=0, max=0, percentiles={}, histogram={})
    found = np.percentile(lengths, _QUANTILES, method="inverted_cdf")
    bits = np.frexp(lengths.astype(np.float64))[1]  # length 2^(b-1) to 2^b - 1 has b bits
    counts = np.bincount(bits)
    return Lengths(
        total=int(lengths.sum()),
        mean=float(lengths.mean()),
        min=int(lengths.min()),
        max=int(lengths.max()),
        percentiles={str(q): int(v) for q, v in zip(_QUANTILES, found, strict=True)},
        histogram={_bin(b): int(n) for b, n in enumerate(counts) if b >= bits.min()},
    )


def _bin(bits: int) -> str:
    low, high = (1 << bits) >> 1, (1 << bits) - 1
    return str(low) if low >= high else f"{low}-{high}"
