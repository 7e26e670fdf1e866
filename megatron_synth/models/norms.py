"""RMSNorms under tensor and sequence parallelism, and where OLMo2 puts them."""

import functools
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import RowParallelLinear
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import (
    ensure_metadata_has_dp_cp_group,
    make_sharded_tensors_for_checkpoint,
)


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm under Megatron-Core's arguments, also under sequence parallelism.

    Megatron-Core's own wrapper refuses sequence parallelism: each rank then sees a part of the
    sequence only, so gradients must be summed over the tensor-parallel ranks. Megatron-Core does
    that for parameters that carry the mark set here.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any
    ) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel


class ProjectionRMSNorm(MegatronModule):
    """RMSNorm of all query (or key) heads as one vector: OLMo2's and OLMoE's QK-norm.

    Under tensor parallelism a rank holds some of the heads, so the mean square is taken over the
    tensor-parallel ranks. The weight is split as the heads are, each rank sees the whole sequence,
    and so its gradient is whole: it carries no mark of sequence parallelism. (Megatron-Core sums
    the gradients of whatever is named q_layernorm or k_layernorm where its own `qk_layernorm` is
    on; with this norm that setting must stay off.)
    """

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        heads: int,
        eps: float = 1e-5,
        **_: Any,
    ) -> None:
        """Build this rank's share.

        Args:
            config: Of the model.
            hidden_size: Size of one head, D.
            heads: Heads of the whole model, over all ranks.
            eps: Added to the mean square.
        """
        super().__init__(config=config)
        assert not config.qk_layernorm, "gradients of this norm must not be summed over ranks"
        self.ranks = config.tensor_model_parallel_size
        self.width = heads * hidden_size
        self.eps = eps
        # Weights are drawn later, so memory is enough here.
        share = torch.ones(self.width // self.ranks, dtype=config.params_dtype)
        self.weight = torch.nn.Parameter(share)
        if self.ranks > 1:
            set_tensor_model_parallel_attributes(self.weight, True, 0, 1)

    def forward(self, heads: torch.Tensor) -> torch.Tensor:
        """Normalise [S, B, heads of this rank, D] over all heads of all ranks together."""
        joined = heads.flatten(-2)
        if self.ranks == 1:
            normed = torch.nn.functional.rms_norm(joined, (self.width,), self.weight, self.eps)
            return normed.view(heads.shape)
        precise = joined.to(torch.promote_types(joined.dtype, torch.float32))
        square = precise.square().sum(dim=-1, keepdim=True)
        # Summed forward and backward: every rank's heads depend on every rank's squares.
        square = copy_to_tensor_model_parallel_region(
            reduce_from_tensor_model_parallel_region(square)
        )
        scaled = precise * torch.rsqrt(square / self.width + self.eps)
        return (scaled * self.weight).to(heads.dtype).view(heads.shape)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The weight as a share of one vector, in the order of the heads."""
        sharded: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
            dp_cp_group=ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"],
        )
        return sharded


class _NormedOutput:
    """Mixed into a row-parallel linear layer: its output passes through an RMSNorm.

    The weight is `layer_norm_weight`, as in Transformer Engine's layers that begin with a norm;
    the linear layer's own checkpoint format takes it in as a tensor that all ranks share.
    """

    def __init__(self, input_size: int, output_size: int, **settings: Any) -> None:
        super().__init__(input_size, output_size, **settings)  # type: ignore[call-arg]
        config: TransformerConfig = settings["config"]
        assert not settings["is_expert"] and not settings["bias"]
        weight = torch.nn.Parameter(torch.ones(output_size, dtype=config.params_dtype))
        weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self.layer_norm_weight = weight
        self.layer_norm_eps = config.layernorm_epsilon

    def forward(self, *arguments: Any, **named: Any) -> tuple[torch.Tensor, None]:
        """As the linear layer: the output [S, B, output_size], and no bias."""
        output, bias = super().forward(*arguments, **named)  # type: ignore[misc]
        assert bias is None
        weight = self.layer_norm_weight
        return torch.nn.functional.rms_norm(output, weight.shape, weight, self.layer_norm_eps), None


@functools.cache
def normed_output(linear: type = RowParallelLinear) -> type:
    """`linear`, a row-parallel layer of Megatron-Core or of Transformer Engine, with a norm after.

    As the last layer of attention and of the MLP it makes OLMo2's block, whose norms stand before
    the sum with the residual stream: x + norm(attention(x)), x + norm(mlp(x)).
    """
    return type(f"Normed{linear.__name__}", (_NormedOutput, linear), {})
