"""Recovery ratio: how much of the way from Repeat to Unique does a run go?

    (s − s_repeat) / (s_unique − s_repeat)

0 is Repeat, 1 is Unique; below 0 is worse than Repeat, above 1 better than Unique. SynPro calls
it recovery ratio (section 5, Table 1); SBP's share of the oracle's gain (section 4) is the same
number. It needs a gap to divide by: where Unique and Repeat cannot be told apart it is not
identified, and no interval is given.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_synth.config import DataError
from megatron_synth.evaluation import DocumentLosses, Interval, resampled_sums, same_documents
from megatron_synth.evaluation.bootstrap import percentile_interval


def recovery_ratio(run: float, repeat: float, unique: float) -> float:
    """(run − repeat) / (unique − repeat), for any score: losses and accuracies alike.

    The direction of the score cancels: with losses, numerator and denominator are both negative
    for a gain.

    Raises:
        DataError: A score is not finite, or `unique` equals `repeat`: there is no gap.
    """
    if not all(math.isfinite(score) for score in (run, repeat, unique)):
        raise DataError(f"scores must be finite numbers, got {run}, {repeat}, {unique}")
    if unique == repeat:
        raise DataError(
            f"Unique and Repeat have the same score ({repeat}): there is no gap to recover",
            fix="The ratio is defined only where more unique data helps or harms.",
        )
    return (run - repeat) / (unique - repeat)


def recovery_from_scores(
    run: float, repeat: float, unique: float, *, lower_is_better: bool = False
) -> dict[str, Any]:
    """The answer of `scaling recovery`, from three single scores.

    Returns:
        `recovery` (a fraction), `gain` and `oracle_gain` (positive = better than Repeat, in the
        score's own unit), `unique_is_better`: where it is false, the ratio measures the way to an
        oracle that is worse than Repeat, and should not be read as a success.

    Raises:
        DataError: See `recovery_ratio`.
    """
    sign = -1.0 if lower_is_better else 1.0
    return {
        "recovery": recovery_ratio(run, repeat, unique),
        "gain": sign * (run - repeat),
        "oracle_gain": sign * (unique - repeat),
        "unique_is_better": sign * (unique - repeat) > 0,
    }


@dataclass(frozen=True)
class Recovery:
    """A recovery ratio measured on documents.

    Attributes:
        recovery: The ratio, or None where it is not identified.
        interval: Its bootstrap interval, or None where it is not identified.
        gap: Unique's loss minus Repeat's, nats per token, with its interval (below 0: Unique is
            better); None where all documents are one cluster.
        reason: Why it is not identified; empty where it is.
    """

    recovery: float | None
    interval: Interval | None
    gap: Interval | None
    reason: str = ""

    @property
    def identified(self) -> bool:
        """Whether Unique and Repeat differ at the interval's confidence."""
        return self.recovery is not None


def recovery_from_losses(
    run: DocumentLosses,
    repeat: DocumentLosses,
    unique: DocumentLosses,
    *,
    seed: int = 0,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> Recovery:
    """Recovery ratio of held-out losses, with a joint bootstrap over clusters of documents.

    The three arms see the same draws, so that what they have in common (hard documents) cancels.
    The ratio is taken as identified only if the interval of unique − repeat excludes zero;
    otherwise a resample's denominator can have either sign and its quantiles mean nothing
    (Fieller's condition for a bounded interval of a ratio).

    Raises:
        DataError: The arms were not measured on the same documents.
    """
    same_documents(run, repeat, unique)
    if run.clusters == 1:
        reason = "all held-out documents are of one group: nothing says how sure the gap is"
        return Recovery(None, None, None, reason)
    tokens = run.tokens.astype(np.float64)
    numerator = run.nll_sum - repeat.nll_sum
    denominator = unique.nll_sum - repeat.nll_sum
    sums = resampled_sums(
        np.stack([numerator, denominator, tokens]),
        seed=seed,
        resamples=resamples,
        groups=run.groups,
    )
    gap = percentile_interval(denominator.sum() / tokens.sum(), sums[:, 1] / sums[:, 2], confidence)
    if not gap.excludes_zero:
        reason = (
            f"Unique − Repeat is {gap.estimate:+.4f} nats per token with a "
            f"{confidence:.0%} interval from {gap.low:+.4f} to {gap.high:+.4f}, which holds zero: "
            "there is no gap to measure the recovery against"
        )
        return Recovery(None, None, gap, reason)
    estimate = recovery_ratio(float(numerator.sum()), 0.0, float(denominator.sum()))
    ratio = percentile_interval(estimate, sums[:, 0] / sums[:, 1], confidence)
    return Recovery(estimate, ratio, gap)
