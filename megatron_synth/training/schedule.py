"""The learning rate at a step."""

import math
from collections.abc import Callable
from typing import Literal

from pydantic import Field, model_validator

from megatron_synth.config import Config, Count


class ScheduleSettings(Config):
    """The learning rate over the run: linear warm-up from 0, then the schedule."""

    kind: Literal["wsd", "cosine", "constant"] = "cosine"
    """`cosine`: half a cosine from `peak` to `final`. `wsd`: `peak`, then linear to `final` over
    the last `decay_share` of the steps. `constant`: `peak` to the end."""
    peak: float = Field(default=3e-3, gt=0)
    final: float = Field(default=0.0, ge=0)
    """Learning rate after the last step of `cosine` and `wsd`."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of linear warm-up; None: `warmup_tokens`, or `warmup_share` of the run."""
    warmup_tokens: Count | None = None
    """The same in tokens (`500M`), rounded up to whole steps."""
    warmup_share: float = Field(default=0.05, ge=0, le=1)
    decay_share: float = Field(default=0.2, ge=0, le=1)
    """wsd only; 0 is warm-up and stable alone."""
    decay_steps: int | None = Field(default=None, ge=0)
    """wsd only: steps of the decay, in place of `decay_share`."""

    @model_validator(mode="after")
    def _final_is_lower(self) -> "ScheduleSettings":
        if self.final > self.peak:
            raise ValueError(f"final={self.final} is above peak={self.peak}")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> "ScheduleSettings":
        if self.warmup_steps is not None and self.warmup_tokens is not None:
            raise ValueError("warmup_steps and warmup_tokens are both set; set one of them")
        if self.decay_steps is not None and self.kind != "wsd":
            raise ValueError(f"decay_steps is of kind wsd, and kind is {self.kind}")
        return self

    def in_steps(self, steps_for: Callable[[int], int]) -> "ScheduleSettings":
        """The same schedule with no length in tokens; `steps_for` gives the steps of so many."""
        if self.warmup_tokens is None:
            return self
        steps = steps_for(self.warmup_tokens)
        return self.model_copy(update={"warmup_steps": steps, "warmup_tokens": None})

    def misfit(self, steps: int) -> str | None:
        """Why warm-up and decay do not fit into `steps`; None where they do.

        Lengths in tokens are turned into steps before (`in_steps`).
        """
        share = self.warmup_share * steps
        warmup = share if self.warmup_steps is None else self.warmup_steps
        if warmup > steps:
            return f"warmup_steps={warmup} are more than the run's {steps} steps"
        decay, said = 0.0, ""
        if self.kind == "wsd" and self.decay_steps is not None:
            decay, said = self.decay_steps, f"decay_steps={self.decay_steps}"
        elif self.kind == "wsd":
            decay = self.decay_share * steps
            said = f"decay_share={self.decay_share:g}: {decay:g} steps"
        if warmup + decay > steps * (1 + 1e-9):
            return (
                f"warm-up ({warmup:g} steps) and decay ({said}) are more than the run's "
                f"{steps} steps"
            )
        return None


def learning_rate(settings: ScheduleSettings, step: int, steps: int) -> float:
    """The learning rate of step `step`, counted from 1 to `steps`.

    Warm-up rises linearly and reaches the peak at its last step. `cosine` and `wsd` would reach
    `final` one step after the last, so that no step is spent at a rate of zero: a decay over n
    steps has the rates final + (peak - final) * n / (n + 1), ..., 1 / (n + 1).
    """
    assert settings.warmup_tokens is None, "lengths in tokens are turned into steps before"
    warmup = settings.warmup_steps
    if warmup is None:
        warmup = round(settings.warmup_share * steps)
    if step <= warmup:
        return settings.peak * step / warmup
    span = settings.peak - settings.final
    if settings.kind == "cosine":
        passed = (step - warmup) / (steps + 1 - warmup)
        return settings.final + span * 0.5 * (1.0 + math.cos(math.pi * passed))
    if settings.kind == "wsd":
        decay = settings.decay_steps
        if decay is None:
            decay = min(round(settings.decay_share * steps), steps - warmup)  # both may round up
        left = steps + 1 - step
        return settings.final + span * min(1.0, left / (decay + 1)) if decay else settings.peak
    return settings.peak
