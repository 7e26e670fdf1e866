"""The phases of one run, one after another: which plan serves which step."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from megatron_synth.blending.ledger import Ledger
from megatron_synth.blending.plan import Plan
from megatron_synth.config import ConfigError


class Chain:
    """Plans that follow each other. Steps and samples are counted over the whole run.

    A run that goes on needs only the phases that are still to come: a chain may begin at a later
    phase. A phase ends where the next one begins, which may be before its own last step.

    Args:
        plans: In order, at least one.

    Attributes:
        plans: The plans.
        first_step: Steps before the first of them.
        steps: Steps of the run up to the end of the last.

    Raises:
        ConfigError: A plan does not follow the one before it, or changes the batch.
    """

    def __init__(self, plans: Sequence[Plan]) -> None:
        assert plans, "a chain has at least one plan"
        for earlier, later in pairwise(plans):
            _require_follows(later, earlier)
        self.plans = tuple(plans)
        self.first_step = plans[0].first_step
        self.steps = plans[-1].first_step + plans[-1].steps
        self._ends = [plan.first_step for plan in plans[1:]] + [self.steps]
        self._ledgers: dict[int, Ledger] = {}

    @property
    def batch(self) -> int:
        """Windows a step."""
        return self.plans[0].global_batch_size

    def phase(self, step: int) -> int:
        """Index of the plan that serves step `step`, first_step + 1 to steps."""
        assert self.first_step < step <= self.steps, f"step {step} of {self.steps}"
        return bisect_left(self._ends, step)

    def hash_at(self, step: int) -> str:
        """Hash of the plan that served step `step`: what a checkpoint of that step holds.

        At `first_step` that is the plan before the chain, and the first one's where none was.

        Raises:
            ConfigError: The chain does not reach the step.
        """
        first = self.plans[0]
        if step == self.first_step:
            return first.previous or first.hash
        if not self.first_step < step <= self.steps:
            raise ConfigError(
                f"step {step:,} is not of these phases: they take steps "
                f"{self.first_step + 1:,} to {self.steps:,}",
                where="blend",
                fix="Give the plans of all phases from that step on.",
            )
        return self.plans[self.phase(step)].hash

    def at(self, step: int) -> dict[str, Any]:
        """The ledger after step `step` of the run, as `Ledger.at`.

        `step`, `samples_ever` and `tokens_ever` count the whole run; `samples` and `tokens` the
        phase. A plan with `order: megatron` has none (see `Ledger`).
        """
        index = 0 if step == self.first_step else self.phase(step)
        if index not in self._ledgers:
            self._ledgers[index] = Ledger(self.plans[index])
        account = self._ledgers[index].at(step - self.plans[index].first_step)
        ever = step * self.batch
        tokens = ever * self.plans[0].sequence_length
        return {**account, "step": step, "samples_ever": ever, "tokens_ever": tokens}


def _require_follows(later: Plan, earlier: Plan) -> None:
    end = earlier.first_step + earlier.steps
    if later.previous != earlier.hash or not earlier.first_step < later.first_step <= end:
        raise ConfigError(
            f"plan {later.hash[:12]} (from step {later.first_step:,}, after "
            f"{(later.previous or 'none')[:12]}) does not follow plan {earlier.hash[:12]} "
            f"(steps {earlier.first_step:,} to {end:,})",
            where="blend",
            fix="Give the phases in order; solve a phase with after= the plan before it.",
        )
    if later.global_batch_size != earlier.global_batch_size:
        raise ConfigError(
            f"global_batch_size changes from {earlier.global_batch_size} to "
            f"{later.global_batch_size} at step {later.first_step:,}",
            where="blend",
            fix="Within one run it stays; train the phases as runs of their own, from each "
            "other's checkpoints.",
        )
