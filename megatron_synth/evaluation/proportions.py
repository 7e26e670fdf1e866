"""Shares of documents with their uncertainty."""

import math
from statistics import NormalDist
from typing import Any

from megatron_synth.evaluation.bootstrap import Interval


def wilson_interval(count: int, of: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a share (Wilson 1927; Agresti and Coull 1998, eq. 2).

    It holds for shares near 0 and 1 too: 0 of 1,000 is not 0 for certain. The documents must be
    drawn independently.

    Args:
        count: Documents with the property.
        of: Documents looked at, at least 1.
        confidence: Share of such intervals that cover the true share.

    Raises:
        ValueError: `count` is not between 0 and `of`, or `of` is 0.
    """
    if not 0 <= count <= of or not of:
        raise ValueError(f"{count} of {of} is no share")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = count / of
    scale = 1 + z * z / of
    middle = (share + z * z / (2 * of)) / scale
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / scale
    # Rounding must not put an end on the wrong side of the share itself.
    low = 0.0 if count == 0 else min(middle - half, share)
    high = 1.0 if count == of else max(middle + half, share)
    return Interval(share, low, high, confidence)


def share_record(count: int, of: int) -> dict[str, Any] | None:
    """A share as JSON holds it: `share`, `low`, `high` (95 %), `count`, `of`; None of none."""
    if not of:
        return None
    found = wilson_interval(count, of)
    return {
        "share": found.estimate,
        "low": found.low,
        "high": found.high,
        "count": count,
        "of": of,
    }
