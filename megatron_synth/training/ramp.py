"""A batch that grows over the first steps of a run."""

from dataclasses import dataclass

from pydantic import Field

from megatron_synth.config import Config


class RampStage(Config):
    """Steps with a smaller batch."""

    batch: int = Field(ge=1)
    """Windows of a step; divides `global_batch_size`."""
    steps: int = Field(ge=1)
    """Steps with that batch; in all a multiple of `global_batch_size` windows."""


@dataclass(frozen=True)
class BatchSizes:
    """Windows of each step, counted from 1: those of the ramp's stages, then the full batch.

    Windows are consumed in the plan's order whatever the ramp; a plan's batch takes several steps.

    Attributes:
        full: Windows of a step after the ramp, and of the plan's batch.
        ramp: The stages.
    """

    full: int
    ramp: tuple[RampStage, ...] = ()

    def misfit(self) -> str | None:
        """What is wrong with the ramp; None: nothing."""
        for stage in self.ramp:
            if self.full % stage.batch:
                return f"batch={stage.batch} does not divide global_batch_size={self.full}"
            if stage.batch * stage.steps % self.full:
                return (
                    f"{stage.steps} steps of {stage.batch} windows are not a multiple of "
                    f"global_batch_size={self.full}; make them a multiple of "
                    f"{self.full // stage.batch} steps"
                )
        return None

    def at(self, step: int) -> int:
        """Windows of step `step`."""
        for stage in self.ramp:
            if step <= stage.steps:
                return stage.batch
            step -= stage.steps
        return self.full

    def through(self, step: int) -> int:
        """Windows consumed after step `step`."""
        windows = 0
        for stage in self.ramp:
            taken = min(step, stage.steps)
            windows += taken * stage.batch
            step -= taken
        return windows + step * self.full

    def ends_batch(self, step: int) -> bool:
        """Whether the plan's batch is whole after step `step`: where a checkpoint can be."""
        return self.through(step) % self.full == 0

    def batches(self, step: int) -> int:
        """Whole batches of the plan after step `step`."""
        return self.through(step) // self.full

    def steps_for(self, windows: int) -> int:
        """Fewest steps that consume at least `windows`."""
        steps = 0
        for stage in self.ramp:
            taken = min(stage.steps, -(-windows // stage.batch))
            steps += taken
            windows -= taken * stage.batch
        return steps + max(0, -(-windows // self.full))
