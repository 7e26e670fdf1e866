"""How one model is laid out over ranks."""

from pydantic import Field

from megatron_synth.config import Config, ConfigError


class ParallelConfig(Config):
    """Sizes of the model-parallel groups; what is left of the ranks is data parallelism."""

    tensor_parallel: int = Field(default=1, ge=1)
    """Ranks that share every layer (attention heads, MLP columns, vocabulary)."""
    pipeline_parallel: int = Field(default=1, ge=1)
    """Ranks that hold consecutive groups of layers."""
    pipeline_chunks: int = Field(default=1, ge=1)
    """Groups of layers on each pipeline rank: the interleaved schedule, whose ranks wait less for
    each other and send more."""
    context_parallel: int = Field(default=1, ge=1)
    """Ranks that share every window; needs Transformer Engine's attention."""
    expert_parallel: int = Field(default=1, ge=1)
    """Ranks that share the experts of an MoE layer; they are data-parallel ranks otherwise."""

    @property
    def model_parallel(self) -> int:
        """Ranks that work on the same windows: those of one copy of the model's dense part."""
        return self.tensor_parallel * self.pipeline_parallel * self.context_parallel

    @property
    def expert_tensor_parallel(self) -> int:
        """Ranks that share each expert's matrices.

        With expert parallelism experts are spread whole. Without it they must be split like the
        other layers: Megatron-Core sums gradients of whole experts over the tensor-parallel ranks
        (each of which sees a part of the tokens) only where expert parallelism is on.
        """
        return 1 if self.expert_parallel > 1 else self.tensor_parallel

    def data_parallel(self, world_size: int) -> int:
        """Copies of the model on `world_size` ranks.

        Raises:
            ConfigError: The ranks cannot be divided that way.
        """
        if world_size % self.model_parallel:
            raise ConfigError(
                f"{world_size} ranks cannot hold a model split over {self.model_parallel} "
                f"(tensor {self.tensor_parallel} x pipeline {self.pipeline_parallel}"
                f"{f' x context {self.context_parallel}' if self.context_parallel > 1 else ''})",
                where="parallel layout",
                fix=f"Start a multiple of {self.model_parallel} ranks, for example "
                f"torchrun --nproc-per-node {self.model_parallel}, or lower the sizes.",
            )
        data_parallel = world_size // self.model_parallel
        shared = data_parallel * self.tensor_parallel * self.context_parallel
        if shared % self.expert_parallel:
            raise ConfigError(
                f"expert_parallel={self.expert_parallel} does not divide the {shared} ranks of a "
                "pipeline stage",
                where="parallel layout",
                fix="Choose a divisor, or start more ranks.",
            )
        return data_parallel


def virtual_stages(parallel: ParallelConfig) -> int | None:
    """Megatron-Core's `virtual_pipeline_model_parallel_size`: None without interleaving."""
    return parallel.pipeline_chunks if parallel.pipeline_chunks > 1 else None
