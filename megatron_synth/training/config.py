"""How a model is trained."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from megatron_synth.config import Config, ConfigError
from megatron_synth.runtime import ParallelConfig
from megatron_synth.training.mirrors import LoggingSettings
from megatron_synth.training.ramp import BatchSizes, RampStage
from megatron_synth.training.rules import StoppingSettings
from megatron_synth.training.schedule import ScheduleSettings

__all__ = ["OptimizerSettings", "ScheduleSettings", "TrainConfig"]


class OptimizerSettings(Config):
    """AdamW with decoupled weight decay (METHODS 4)."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    decay_norms: bool = False
    """Decay the norms' weights too (SynPro does). Off by default, as in Megatron-LM and Llama."""
    decay_embeddings: bool = True
    """Decay the input embedding and the output head too (SynPro does not)."""
    clip: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 turns clipping off."""
    distributed: bool = False
    """Megatron-Core's distributed optimizer: data-parallel ranks share the optimizer's state (ZeRO
    stage 1) instead of each holding all of it. The same numbers, less memory."""


class TrainConfig(Config):
    """One training run.

    The loss is the mean cross-entropy over the tokens whose loss_mask is 1 (synthesizer tuning:
    those of the second document of a pair).
    """

    sequence_length: int = Field(default=512, ge=2)
    """Tokens of a window."""
    micro_batch_size: int = Field(default=4, ge=1)
    """Windows of one forward pass on one rank."""
    global_batch_size: int = Field(default=8, ge=1)
    """Windows of one optimizer step, over all ranks."""
    batch_ramp: tuple[RampStage, ...] = ()
    """Smaller batches at first, stage by stage: `[{batch: 64, steps: 800}, {batch: 256, ...}]`.
    The windows are the plan's, in its order; a checkpoint waits for the end of a whole batch."""
    steps: int = Field(ge=1)
    """Optimizer steps of the whole run, those of the ramp included."""
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    tensor_parallel: int = Field(default=1, ge=1)
    pipeline_parallel: int = Field(default=1, ge=1)
    pipeline_chunks: int = Field(default=1, ge=1)
    context_parallel: int = Field(default=1, ge=1)
    expert_parallel: int = Field(default=1, ge=1)
    save_every: int = Field(default=100, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    save_in_background: bool = True
    """Train on while a checkpoint is written from a copy in the host's memory, which is as large
    as what the rank writes (12 bytes a parameter in float32, 14 in bf16). A save waits for the one
    before."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that stay on disk."""
    keep_every: int | None = Field(default=None, ge=1)
    """Checkpoints of every this many steps stay on disk too, for ever."""
    eval_every: int = Field(default=100, ge=1)
    """Steps between validation losses; they are also taken after the last step."""
    eval_intervals: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """By validation set, in place of `eval_every`."""
    seed: int = Field(default=0, ge=0)
    """Of the initial weights. The order of the data has its own seed, in the blend plan."""
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    """auto: bf16 with float32 master weights on CUDA, fp32 on a CPU. fp64: weights, gradients,
    optimizer and router in float64, on a CPU, for tests and studies."""
    fp8: Literal["e4m3", "hybrid"] | None = None
    """Matrix products in FP8, by Transformer Engine."""
    overlap: bool = False
    """Sum gradients over the copies while the backward pass still goes on."""
    moe_dispatcher: Literal["alltoall", "allgather", "flex"] = "alltoall"
    """How tokens come to their experts (Megatron-Core's `moe_token_dispatcher_type`); flex is
    DeepEP's, on GPUs."""
    recompute: bool = False
    """Compute a layer's activations again in the backward pass instead of keeping them: the same
    numbers, a third more computation, far less memory."""
    cpu_threads: int = Field(default=1, ge=1)
    """Threads of a rank on a CPU. Fixed, since bit-identical results need the same number."""
    stopping: StoppingSettings = StoppingSettings()
    """When to end before the last step."""
    logging: LoggingSettings = LoggingSettings()
    """What to show beside `metrics.jsonl`."""

    @model_validator(mode="after")
    def _batches_fit(self) -> "TrainConfig":
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} is not a multiple of "
                f"micro_batch_size={self.micro_batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _ramp_fits(self) -> "TrainConfig":
        problem = self.batch_sizes.misfit()
        for stage in self.batch_ramp:
            if stage.batch % self.micro_batch_size:
                problem = f"batch={stage.batch} is not a multiple of micro_batch_size="
                problem += str(self.micro_batch_size)
        taken = sum(stage.steps for stage in self.batch_ramp)
        if taken > self.steps:
            problem = f"the ramp's {taken} steps are more than the run's {self.steps}"
        if self.batch_ramp and (self.stopping.spike or self.stopping.plateau):
            problem = "stopping.spike and plateau count whole batches; they go with no ramp"
        if problem:
            raise ValueError(f"batch_ramp: {problem}")
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> "TrainConfig":
        problem = self.schedule_in_steps.misfit(self.steps)
        if problem:
            raise ValueError(problem)
        return self

    @property
    def batch_sizes(self) -> BatchSizes:
        """Windows of each step."""
        return BatchSizes(self.global_batch_size, self.batch_ramp)

    def tokens_through(self, step: int) -> int:
        """Tokens of all windows of the steps up to `step`."""
        return self.batch_sizes.through(step) * self.sequence_length

    @property
    def schedule_in_steps(self) -> ScheduleSettings:
        """The schedule with all lengths in steps, as `learning_rate` takes it."""
        return self.schedule.in_steps(
            lambda tokens: self.batch_sizes.steps_for(-(-tokens // self.sequence_length))
        )

    @property
    def parallel(self) -> ParallelConfig:
        """The layout over ranks."""
        return ParallelConfig(
            tensor_parallel=self.tensor_parallel,
            pipeline_parallel=self.pipeline_parallel,
            pipeline_chunks=self.pipeline_chunks,
            context_parallel=self.context_parallel,
            expert_parallel=self.expert_parallel,
        )

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.tokens_through(self.steps)

    def micro_batches(self, world_size: int) -> int:
        """Micro-batches of one whole step on each data-parallel rank.

        Raises:
            ConfigError: The global batch, or one of the ramp, cannot be shared evenly.
        """
        for stage in self.batch_ramp:
            self._micro_batches(stage.batch, world_size)
        return self._micro_batches(self.global_batch_size, world_size)

    def _micro_batches(self, size: int, world_size: int) -> int:
        data_parallel = self.parallel.data_parallel(world_size)
        at_once = self.micro_batch_size * data_parallel
        if size % at_once:
            name = "global_batch_size" if size == self.global_batch_size else "batch_ramp: batch"
            raise ConfigError(
                f"{name}={size} is not a multiple of "
                f"micro_batch_size x data parallelism = {self.micro_batch_size} x {data_parallel}",
                where="training",
                fix="Change one of them, or the number of ranks.",
            )
        micro_batches = size // at_once
        if self.pipeline_chunks > 1 and micro_batches % self.pipeline_parallel:
            raise ConfigError(
                f"{micro_batches} micro-batches a step are not a multiple of pipeline_parallel="
                f"{self.pipeline_parallel}, which the interleaved schedule needs",
                where="training",
                fix="Change micro_batch_size or global_batch_size, or set pipeline_chunks=1.",
            )
        return micro_batches
