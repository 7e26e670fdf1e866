"""Figures in, laws and ratios out; pure functions that run nothing.

In: scores or per-document losses of arms. Out: the recovery ratio with its interval.
Cost: numpy only; 10,000 resamples of 1,000 documents take a tenth of a second.
"""

from megatron_synth.scaling.recovery import (
    Recovery,
    recovery_from_losses,
    recovery_from_scores,
    recovery_ratio,
)

__all__ = ["Recovery", "recovery_from_losses", "recovery_from_scores", "recovery_ratio"]
