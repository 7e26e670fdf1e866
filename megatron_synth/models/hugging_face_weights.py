"""Weights by Megatron-Core's names and by Hugging Face's, both ways.

Ours are those of a whole model under the local layer specs, as `build_model` gives it on one rank
without Transformer Engine. Rotary positions need no permutation: both keep the two halves of a
head apart.
"""

from collections.abc import Iterator, Mapping

import torch

from megatron_synth.config import DataError
from megatron_synth.models.config import ModelConfig


def to_hugging_face(
    weights: dict[str, torch.Tensor], config: ModelConfig
) -> dict[str, torch.Tensor]:
    """Rename and split weights; cut the vocabulary's padding.

    Takes Megatron-Core's names under the local layer spec and under Transformer Engine's, where
    the norms before attention and MLP are parts of the linear layers.

    Raises:
        DataError: The weights are not those of this model.
    """
    remaining = {k: v for k, v in weights.items() if isinstance(v, torch.Tensor)}
    remaining = {k: v for k, v in remaining.items() if not k.endswith("_extra_state")}

    def take(*names: str) -> torch.Tensor:
        for name in names:
            if name in remaining:
                return remaining.pop(name).detach().cpu()
        raise DataError(
            f"the weights have none of {', '.join(names)}",
            where="conversion to Hugging Face",
            fix="The checkpoint is of another model than its config says.",
        )

    result = {theirs: take(ours)[: config.vocab_size] for ours, theirs in _vocabularies(config)}
    for layer in range(config.num_layers):
        fused = take(f"decoder.layers.{layer}.self_attention.linear_qkv.weight")
        names = _qkv_names(layer)
        result |= dict(zip(names, _split_qkv(fused, config), strict=True))
    for ours, theirs in _renamed(config):
        result[theirs] = take(*ours)
    for first, second, theirs in _mlps(config):
        gate, up = take(*first).chunk(2)
        result[theirs + "gate_proj.weight"] = gate
        result[theirs + "up_proj.weight"] = up
        result[theirs + "down_proj.weight"] = take(*second)
    if remaining:
        raise DataError(
            f"weights that have no place in the Hugging Face form: {', '.join(sorted(remaining))}",
            where="conversion to Hugging Face",
        )
    return {name: tensor.contiguous() for name, tensor in result.items()}


def from_hugging_face(
    weights: Mapping[str, torch.Tensor], config: ModelConfig
) -> dict[str, torch.Tensor]:
    """The inverse of `to_hugging_face`; the vocabulary's padding comes back as zeros.

    Args:
        weights: By the names and with the shapes of `hugging_face_shapes`.
        config: The model.

    Returns:
        Weights for `load_whole_weights`, or for `load_state_dict` of a model on one rank under the
        local layer specs; their type is that of the given ones.
    """
    padding = (0, 0, 0, config.padded_vocab_size - config.vocab_size)
    result = {
        ours: torch.nn.functional.pad(weights[theirs], padding)
        for ours, theirs in _vocabularies(config)
    }
    for layer in range(config.num_layers):
        query, key, value = (weights[name] for name in _qkv_names(layer))
        fused = _join_qkv(query, key, value, config)
        result[f"decoder.layers.{layer}.self_attention.linear_qkv.weight"] = fused
    for ours, theirs in _renamed(config):
        result[ours[0]] = weights[theirs]
    for first, second, theirs in _mlps(config):
        gate, up = weights[theirs + "gate_proj.weight"], weights[theirs + "up_proj.weight"]
        result[first[0]] = torch.cat([gate, up])
        result[second[0]] = weights[theirs + "down_proj.weight"]
    return result


def hugging_face_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every weight of the model in Hugging Face's form, by name."""
    d, head = config.hidden_size, config.size_of_head
    queries, keys = config.num_attention_heads * head, config.query_groups * head
    shapes: dict[str, tuple[int, ...]] = {
        theirs: (config.vocab_size, d) for _, theirs in _vocabularies(config)
    }
    for layer in range(config.num_layers):
        rows = (queries, keys, keys)
        shapes |= {name: (n, d) for name, n in zip(_qkv_names(layer), rows, strict=True)}
    whole = config.qk_norm_kind == "projection"
    special = {
        "o_proj": (d, queries),
        "q_norm": (queries if whole else head,),
        "k_norm": (keys if whole else head,),
        "gate": (config.moe.num_experts if config.moe else 0, d),
    }
    for _, theirs in _renamed(config):
        shapes[theirs] = special.get(theirs.split(".")[-2], (d,))
    for _, _, theirs in _mlps(config):
        for name in ("gate_proj", "up_proj"):
            shapes[f"{theirs}{name}.weight"] = (config.ffn_hidden_size, d)
        shapes[theirs + "down_proj.weight"] = (d, config.ffn_hidden_size)
    return shapes


def _vocabularies(config: ModelConfig) -> list[tuple[str, str]]:
    pairs = [("embedding.word_embeddings.weight", "model.embed_tokens.weight")]
    if not config.tie_embeddings:
        pairs.append(("output_layer.weight", "lm_head.weight"))
    return pairs


def _qkv_names(layer: int) -> list[str]:
    return [f"model.layers.{layer}.self_attn.{name}_proj.weight" for name in "qkv"]


def _renamed(config: ModelConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Weights that keep their shape: our names (the local spec's first), and theirs."""
    yield ("decoder.final_layernorm.weight",), "model.norm.weight"
    for layer in range(config.num_layers):
        ours, theirs = f"decoder.layers.{layer}.", f"model.layers.{layer}."
        attention, mlp = ours + "self_attention.", ours + "mlp."
        yield (attention + "linear_proj.weight",), theirs + "self_attn.o_proj.weight"
        after_attention = theirs + "post_attention_layernorm.weight"
        if config.block == "post_norm":
            after_mlp = theirs + "post_feedforward_layernorm.weight"
            yield (attention + "linear_proj.layer_norm_weight",), after_attention
            yield (mlp + "linear_fc2.layer_norm_weight",), after_mlp
        else:
            before = (ours + "input_layernorm.weight", attention + "linear_qkv.layer_norm_weight")
            yield before, theirs + "input_layernorm.weight"
            # The name means "after attention's sum", and so before the MLP.
            between = (ours + "pre_mlp_layernorm.weight", mlp + "linear_fc1.layer_norm_weight")
            yield between, after_attention
        if config.qk_norm_kind != "none":
            for name in "qk":
                norm = f"{attention}{name}_layernorm.weight"
                yield (norm,), f"{theirs}self_attn.{name}_norm.weight"
        if config.moe:
            yield (mlp + "router.weight",), theirs + "mlp.gate.weight"


def _mlps(config: ModelConfig) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], str]]:
    """Our names of the two matrices of each MLP (the local spec's first), and their prefix."""
    for layer in range(config.num_layers):
        ours, theirs = f"decoder.layers.{layer}.mlp.", f"model.layers.{layer}.mlp."
        if config.moe is None:
            yield (ours + "linear_fc1.weight",), (ours + "linear_fc2.weight",), theirs
            continue
        for expert in range(config.moe.num_experts):
            first, second = (
                (
                    f"{ours}experts.local_experts.{expert}.{name}.weight",
                    f"{ours}experts.{name}.weight{expert}",
                )
                for name in ("linear_fc1", "linear_fc2")
            )
            yield first, second, f"{theirs}experts.{expert}."


def _split_qkv(
    fused: torch.Tensor, config: ModelConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Megatron-Core keeps, for each key/value group, its queries, then its key, then its value."""
    groups, head = config.query_groups, config.size_of_head
    queries = config.num_attention_heads // groups
    grouped = fused.view(groups, queries + 2, head, config.hidden_size)
    query, key, value = grouped.split([queries, 1, 1], dim=1)
    return (
        query.reshape(-1, config.hidden_size),
        key.reshape(-1, config.hidden_size),
        value.reshape(-1, config.hidden_size),
    )


def _join_qkv(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, config: ModelConfig
) -> torch.Tensor:
    parts = [
        part.view(config.query_groups, -1, config.size_of_head, config.hidden_size)
        for part in (query, key, value)
    ]
    return torch.cat(parts, dim=1).reshape(-1, config.hidden_size)
