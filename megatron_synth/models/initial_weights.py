"""Weights that are the same however the model is split over ranks: drawn, or read from elsewhere.

Both go weight by weight through Megatron-Core's checkpoint format, which gives each weight a
global name (with layer and expert) and this rank's place in it, independent of the layout.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import xxhash
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

from megatron_synth.config import DataError
from megatron_synth.models.config import ModelConfig

_INTO_RESIDUAL = ("linear_proj.weight", "linear_fc2.weight")

# What the global format calls by the names of Transformer Engine, where norms are parts of the
# linear layers; and its grouped experts.
_GLOBAL_NAMES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
_EXPERTS = "mlp.experts.experts."


def initialise(model: torch.nn.Module, config: ModelConfig, seed: int) -> None:
    """Set every parameter of this rank's part of the model.

    Each weight is drawn as a whole, from a generator seeded by `seed` and the weight's global
    name, and this rank keeps its share. Matrices are normal with standard deviation
    `config.init_std` (the two projections into the residual stream: divided by sqrt(2 * layers));
    norms are 1.

    Cost: every rank draws whole matrices of its own layers, on the CPU: about 1 s for 10^8.
    """

    def draw(shard: ShardedTensor) -> torch.Tensor:
        std = config.init_std
        if shard.key.endswith(_INTO_RESIDUAL):
            std /= math.sqrt(2 * config.num_layers)
        stacked = shard.prepend_axis_num
        place = tuple(shard.global_offset[:stacked])
        generator = torch.Generator().manual_seed(_seed_of(seed, f"{shard.key}{list(place)}"))
        whole = torch.empty(shard.global_shape[stacked:])
        if whole.dim() == 1:
            return whole.fill_(1.0)
        return whole.normal_(0.0, std, generator=generator)

    _fill(model, draw)


def load_whole_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Give this rank its share of weights that are whole on every rank.

    Args:
        model: This rank's part, in any layout.
        weights: The whole model by the names of `read_hugging_face`. Their type is converted.

    Raises:
        DataError: A weight is missing, or of another shape.
    """

    def find(shard: ShardedTensor) -> torch.Tensor:
        name = _whole_name(shard)
        shape = tuple(shard.global_shape[shard.prepend_axis_num :])
        found = weights.get(name)
        if found is None or tuple(found.shape) != shape:
            raise DataError(
                f"{name} is missing"
                if found is None
                else f"{name} has shape {tuple(found.shape)}, the model needs {shape}",
                where="weights",
                fix="Build the model from the config that came with the weights.",
            )
        return found

    _fill(model, find)


def _fill(model: torch.nn.Module, whole_of: Callable[[ShardedTensor], torch.Tensor]) -> None:
    for shard in _shards(model):
        weight = shard.data.detach()  # shares the parameter's memory
        offsets = shard.global_offset[shard.prepend_axis_num :]
        share = tuple(
            slice(offset, offset + size) for offset, size in zip(offsets, weight.shape, strict=True)
        )
        weight.copy_(whole_of(shard)[share])


def _whole_name(shard: ShardedTensor) -> str:
    """The name in a whole model's state_dict, under the local layer specs."""
    before, layers, rest = shard.key.partition("decoder.layers.")
    if not layers:
        return str(shard.key)
    layer, *expert = shard.global_offset[: shard.prepend_axis_num]
    if expert:
        rest = rest.replace(_EXPERTS, f"mlp.experts.local_experts.{expert[0]}.")
    return f"{before}{layers}{layer}.{_GLOBAL_NAMES.get(rest, rest)}"


def _shards(model: torch.nn.Module) -> Iterator[ShardedTensor]:
    state: dict[str, Any] = model.sharded_state_dict()
    apply_factories(state)
    for value in nested_values(state):
        # What is no tensor is Transformer Engine's extra state, which starts out empty.
        if isinstance(value, ShardedTensor):
            assert value.data.data_ptr(), f"{value.key} holds no parameter"
            yield value


def _seed_of(seed: int, name: str) -> int:
    # torch takes 64 signed bits
    return xxhash.xxh3_64_intdigest(f"{seed}:{name}".encode()) >> 1
