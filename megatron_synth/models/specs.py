"""Which classes a transformer layer is made of."""

import importlib.metadata
import importlib.util

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from megatron_synth.models.attention import SdpaCoreAttention
from megatron_synth.models.config import ModelConfig
from megatron_synth.models.experts import GroupedExperts
from megatron_synth.models.norms import ProjectionRMSNorm, RMSNorm, normed_output


def uses_transformer_engine() -> bool:
    """Whether layers are Transformer Engine's: it is installed and CUDA is there."""
    return torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


def groups_experts(transformer: TransformerConfig) -> bool:
    """Whether experts run as grouped products of torch's: bfloat16 on a GPU."""
    return (
        bool(transformer.num_moe_experts)
        and transformer.bf16
        and torch.cuda.is_available()
        and not uses_transformer_engine()
    )


def parts_in_use() -> str:
    """Which fused parts this machine has, in a line for the log."""
    from megatron.core import optimizer

    layers = "Megatron-Core's local layers, attention on scaled_dot_product_attention, experts "
    layers += "by torch's grouped_mm" if torch.cuda.is_available() else "one after another"
    if uses_transformer_engine():
        version = importlib.metadata.version("transformer_engine")
        layers = f"layers of Transformer Engine {version}, experts by grouped GEMM"
    # The name that Megatron-Core bound: of Transformer Engine, else of Apex, else of torch.
    adam = optimizer.Adam
    return f"{layers}; optimizer {adam.__module__.partition('.')[0]}.{adam.__name__}"


def block_spec(
    config: ModelConfig, transformer: TransformerConfig, stage: int | None = None
) -> ModuleSpec | TransformerBlockSubmodules:
    """The classes of the layers that this rank holds (in virtual stage `stage`), for `GPTModel`."""
    num_experts = config.moe.num_experts if config.moe else None
    per_head = config.qk_norm_kind == "head"
    if uses_transformer_engine():
        layer = get_gpt_layer_with_transformer_engine_spec(
            num_experts=num_experts,
            moe_grouped_gemm=num_experts is not None,
            qk_layernorm=per_head,
        )
        if config.block == "post_norm":
            from megatron.core.extensions.transformer_engine import (
                TEColumnParallelLinear,
                TERowParallelLinear,
            )

            _norm_after(layer.submodules, TEColumnParallelLinear, TERowParallelLinear)
        _norm_projections(layer.submodules, config)
        return layer
    layer = get_gpt_layer_local_spec(
        num_experts=num_experts,
        moe_grouped_gemm=False,
        qk_layernorm=per_head,
        normalization="RMSNorm",
    )
    parts = layer.submodules
    if groups_experts(transformer):
        parts.mlp.submodules.experts.module = GroupedExperts
    parts.input_layernorm = RMSNorm
    parts.pre_mlp_layernorm = RMSNorm
    attention = parts.self_attention.submodules
    attention.core_attention = SdpaCoreAttention
    if per_head:
        attention.q_layernorm = RMSNorm
        attention.k_layernorm = RMSNorm
    if config.block == "post_norm":
        _norm_after(parts, ColumnParallelLinear, RowParallelLinear)
    _norm_projections(parts, config)
    layers = [layer] * get_num_layers_to_build(transformer, vp_stage=stage)
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=RMSNorm)


def _norm_after(parts: TransformerLayerSubmodules, column: type, row: type) -> None:
    """OLMo2's block: no norm before attention and MLP, one after each."""
    parts.input_layernorm = IdentityOp
    parts.pre_mlp_layernorm = IdentityOp
    parts.sharded_state_dict_keys_map = {}
    attention, mlp = parts.self_attention.submodules, parts.mlp.submodules
    attention.linear_qkv, attention.linear_proj = column, normed_output(row)
    mlp.linear_fc1, mlp.linear_fc2 = column, normed_output(row)


def _norm_projections(parts: TransformerLayerSubmodules, config: ModelConfig) -> None:
    """QK-norm over the whole projection, where the model has that."""
    if config.qk_norm_kind != "projection":
        return
    attention = parts.self_attention.submodules
    attention.q_layernorm, attention.k_layernorm = (
        ModuleSpec(module=ProjectionRMSNorm, params={"heads": heads})
        for heads in (config.num_attention_heads, config.query_groups)
    )
