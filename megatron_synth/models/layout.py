"""Whether a model can be split over ranks: arithmetic on its sizes, before anything is built."""

from megatron_synth.config import ConfigError
from megatron_synth.models.config import ModelConfig
from megatron_synth.runtime import ParallelConfig

_WHERE = "parallel layout"


def check_layout(config: ModelConfig, parallel: ParallelConfig) -> None:
    """Refuse a layout over which Megatron-Core cannot split this model evenly.

    Raises:
        ConfigError: Names the size that is not divisible, and the key to change.
    """
    tensor, pipeline = parallel.tensor_parallel, parallel.pipeline_parallel
    shares = {
        "num_attention_heads": (config.num_attention_heads, tensor, "tensor_parallel"),
        "num_query_groups": (config.query_groups, tensor, "tensor_parallel"),
        "ffn_hidden_size": (config.ffn_hidden_size, tensor, "tensor_parallel"),
        "padded vocab_size": (config.padded_vocab_size, tensor, "tensor_parallel"),
        "num_layers": (config.num_layers, pipeline, "pipeline_parallel"),
    }
    chunks = parallel.pipeline_chunks
    if chunks > 1:
        if pipeline == 1:
            raise ConfigError(
                f"pipeline_chunks={chunks}, but there is one pipeline stage",
                where=_WHERE,
                fix="Set pipeline_chunks=1, or pipeline_parallel to 2 or more.",
            )
        stages = "pipeline_parallel x pipeline_chunks"
        shares["num_layers"] = (config.num_layers, pipeline * chunks, stages)
    if config.moe:
        shares["moe.num_experts"] = (
            config.moe.num_experts,
            parallel.expert_parallel,
            "expert_parallel",
        )
    elif parallel.expert_parallel > 1:
        raise ConfigError(
            f"expert_parallel={parallel.expert_parallel}, but the model has no experts",
            where=_WHERE,
            fix="Set expert_parallel=1, or choose an MoE preset.",
        )
    for name, (size, ranks, key) in shares.items():
        if size % ranks:
            raise ConfigError(
                f"{name}={size} of the model cannot be split over {key}={ranks}",
                where=_WHERE,
                fix=f"Choose a {key} that divides {size}.",
            )
