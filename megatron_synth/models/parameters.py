"""How many parameters a model has and how many operations its training takes; arithmetic only."""

from dataclasses import dataclass

from megatron_synth.models.config import ModelConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Counts of parameters; padding of the vocabulary is not counted.

    Attributes:
        total: All parameters.
        active: Those that one token uses: of an MoE layer, the chosen experts only.
        non_embedding: All but the input embedding and the output head.
        active_non_embedding: `active` without the input embedding and the output head.
    """

    total: int
    active: int
    non_embedding: int
    active_non_embedding: int


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Count the parameters of a model without building it."""
    d, head = config.hidden_size, config.size_of_head
    queries = config.num_attention_heads * head
    keys = config.query_groups * head
    attention = d * (2 * queries + 2 * keys)
    qk_norms = {"none": 0, "head": 2 * head, "projection": queries + keys}
    norms = 2 * d + qk_norms[config.qk_norm_kind]
    mlp = 3 * d * config.ffn_hidden_size
    total_mlp, active_mlp = mlp, mlp
    if config.moe:
        router = d * config.moe.num_experts
        total_mlp = config.moe.num_experts * mlp + router
        active_mlp = config.moe.top_k * mlp + router
    shared = config.num_layers * (attention + norms) + d  # and the last norm
    embeddings = (1 if config.tie_embeddings else 2) * config.vocab_size * d
    non_embedding = shared + config.num_layers * total_mlp
    active_non_embedding = shared + config.num_layers * active_mlp
    return ParameterCounts(
        total=non_embedding + embeddings,
        active=active_non_embedding + embeddings,
        non_embedding=non_embedding,
        active_non_embedding=active_non_embedding,
    )


def training_flops(config: ModelConfig, tokens: int, sequence_length: int) -> float:
    """Floating-point operations of forward and backward over `tokens` tokens.

    Six for each active parameter of a matrix product (the head counts, the embedding lookup does
    not), and for attention 6 * layers * heads * head size * sequence_length a token: half of the
    full square, since attention is causal (PaLM, appendix B, halved).
    """
    matrices = count_parameters(config).active_non_embedding
    matrices += config.vocab_size * config.hidden_size
    width = config.num_attention_heads * config.size_of_head
    attention = 6 * config.num_layers * width * sequence_length
    return float(tokens) * (6 * matrices + attention)
