"""When to end a run before its last step: settings, and the rules as plain functions."""

from collections.abc import Sequence
from statistics import fmean

from pydantic import Field

from megatron_synth.config import Config


class SpikeRule(Config):
    """A training loss far above the losses before it."""

    above: float = Field(default=1.0, gt=0)
    """Nats a token above the mean of the last `window` steps' losses."""
    window: int = Field(default=100, ge=1)
    """Steps that the mean is over; nothing is a spike before that many are done."""


class PlateauRule(Config):
    """Saturation on a validation set, epoch by epoch (METHODS 2; SynPro eq. 4-9)."""

    validation: str
    """Name of the validation set; its loss is measured at the end of every epoch."""
    epoch_steps: int | None = Field(default=None, ge=1)
    """Steps of an epoch. The verb `train` takes it from the plan: windows of an epoch of all
    corpora that are trained on, over the windows of a step, rounded up."""


class StoppingSettings(Config):
    """When to end before the last step. All are off unless set."""

    spike: SpikeRule | None = None
    """Stop before a step whose loss is a spike; a checkpoint of the step before is saved."""
    plateau: PlateauRule | None = None
    """End, as if that were the last step, once the loss has saturated. The checkpoint of the best
    epoch is kept in `best/`."""
    max_hours: float | None = Field(default=None, gt=0)
    """Wall-clock time of one call; then a checkpoint is saved and the exit status is 75."""
    expected_tokens_per_second: float | None = Field(default=None, gt=0)
    """Of the whole run, over all devices."""
    least_throughput: float = Field(default=0.5, gt=0, le=1)
    """Share of `expected_tokens_per_second` below which the run is too slow."""
    slow_steps: int = Field(default=50, ge=1)
    """Steps that must all be too slow; then a checkpoint is saved and the run fails."""
    hang_minutes: float | None = Field(default=None, gt=0)
    """Time without a step, a batch of a validation set or a checkpoint after which every rank
    writes what its threads are doing and leaves with status 75."""


def is_spike(losses: Sequence[float], loss: float, rule: SpikeRule) -> bool:
    """Whether `loss` is a spike after `losses`, the steps before it in order."""
    window = losses[-rule.window :]
    return len(window) == rule.window and loss > fmean(window) + rule.above


def is_saturated(losses: Sequence[float]) -> bool:
    """Whether the newest of `losses`, one an epoch, is no better than the best of the two before.

    With L_e the loss after epoch e: L_e >= min(L_{e-1}, L_{e-2}) (SynPro eq. 4-9). After the
    second epoch there is only one loss before; after the first none, and nothing is saturated.
    """
    return len(losses) >= 2 and losses[-1] >= min(losses[-3:-1])


def best_epoch(losses: Sequence[float]) -> int:
    """Which epoch, from 1, has the lowest loss; the first of equals."""
    return min(range(len(losses)), key=lambda e: losses[e]) + 1


def is_too_slow(speeds: Sequence[float], settings: StoppingSettings) -> bool:
    """Whether each of the last `slow_steps` of `speeds` (tokens a second) is too low."""
    if settings.expected_tokens_per_second is None:
        return False
    least = settings.expected_tokens_per_second * settings.least_throughput
    newest = speeds[-settings.slow_steps :]
    return len(newest) == settings.slow_steps and max(newest) < least
