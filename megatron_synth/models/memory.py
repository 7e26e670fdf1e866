"""How much memory training takes on one GPU, reckoned before anything is built."""

from dataclasses import dataclass

from megatron_synth.models.config import ModelConfig
from megatron_synth.models.parameters import count_parameters
from megatron_synth.runtime import ParallelConfig

_WEIGHTS, _GRADIENTS, _OPTIMIZER = 2, 4, 12
"""Bytes a parameter in bf16 training: bf16 weights; float32 gradients; float32 master weights and
Adam's two moments (Megatron-Core's mixed-precision optimizer)."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on the GPU that takes most.

    Attributes:
        weights: Of its share of the parameters.
        gradients: Likewise.
        optimizer: Master weights and moments.
        activations: Of the micro-batches in flight, the logits among them.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Everything; what the allocator and NCCL keep comes on top, a few GB."""
        return self.weights + self.gradients + self.optimizer + self.activations


def training_memory(
    config: ModelConfig,
    parallel: ParallelConfig,
    *,
    ranks: int,
    micro_batch_size: int,
    sequence_length: int,
    recompute: bool = False,
    distributed_optimizer: bool = False,
) -> TrainingMemory:
    """Reckon the memory of one GPU in bf16 training.

    Activations are counted tensor by tensor, as Korthikanti et al. ("Reducing activation
    recomputation in large transformer models", 2022) do for the GPT block, here for a SwiGLU block
    with flash attention, whose scores are never stored. What norms keep in float32 is 3 bytes an
    element, the one coefficient that is fitted, to measured peaks on one H100.

    Args:
        config: The model.
        parallel: Its layout.
        ranks: All GPUs.
        micro_batch_size: Windows of a forward pass.
        sequence_length: Tokens of a window.
        recompute: Whether only the input of each layer is kept.
        distributed_optimizer: Whether copies of the model share the optimizer's state.

    Raises:
        ConfigError: The ranks cannot be divided that way.
    """
    share = _parameters(config, parallel)
    copies = parallel.data_parallel(ranks)
    optimizer = share * _OPTIMIZER // (copies if distributed_optimizer else 1)
    tokens = micro_batch_size * sequence_length // parallel.context_parallel
    layer = _layer(config)
    # The first pipeline stage holds as many micro-batches as there are stages, of its share of the
    # layers: together as much as all layers of one.
    kept = 2 * config.hidden_size if recompute else layer
    layers = config.num_layers * kept + (layer if recompute else 0)
    logits = 4 * config.padded_vocab_size  # bf16, and their gradient
    activations = tokens * (layers + logits) // parallel.tensor_parallel
    return TrainingMemory(share * _WEIGHTS, share * _GRADIENTS, optimizer, activations)


def _parameters(config: ModelConfig, parallel: ParallelConfig) -> int:
    """Parameters on the first or last pipeline stage, whichever has more."""
    counts = count_parameters(config)
    table = config.padded_vocab_size * config.hidden_size
    tables = 1 if config.tie_embeddings or parallel.pipeline_parallel > 1 else 2
    experts = 0
    if config.moe:
        one = 3 * config.hidden_size * config.ffn_hidden_size
        experts = config.num_layers * config.moe.num_experts * one
    dense = counts.non_embedding - experts
    stages, tensor = parallel.pipeline_parallel, parallel.tensor_parallel
    spread = parallel.expert_parallel * parallel.expert_tensor_parallel
    return dense // (stages * tensor) + experts // (stages * spread) + tables * table // tensor


def _layer(config: ModelConfig) -> int:
    """Bytes that one layer keeps for its backward pass, a token."""
    hidden, ffn = config.hidden_size, config.ffn_hidden_size
    queries = config.num_attention_heads * config.size_of_head
    keys = config.query_groups * config.size_of_head
    # Inputs of the two blocks and of their norms; queries, keys, values; attention's output.
    kept = 4 * hidden + queries + 2 * keys + queries
    normed = 2 * hidden
    if config.qk_norm_kind != "none":
        kept += queries + keys
        normed += queries + keys
    if config.moe:  # each token at each of its experts, there and back
        kept += config.moe.top_k * (2 * hidden + 4 * ffn)
    else:
        kept += 4 * ffn  # gate and value, silu(gate), their product
    return 2 * kept + 3 * normed
