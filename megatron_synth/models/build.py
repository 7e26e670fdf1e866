"""From a `ModelConfig` to a Megatron-Core model on this rank."""

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.moe.moe_utils import (
    MoEAuxLossAutoScaler,
    get_moe_layer_wise_logging_tracker,
)
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_synth.models.chunks import ModelChunks
from megatron_synth.models.config import ModelConfig
from megatron_synth.models.initial_weights import initialise
from megatron_synth.models.layout import check_layout
from megatron_synth.models.losses import compiled_token_losses
from megatron_synth.models.specs import block_spec
from megatron_synth.runtime import ParallelConfig, device
from megatron_synth.runtime.layout import virtual_stages


class CausalModel(GPTModel):
    """Megatron-Core's GPT, in whose loss the padding of the vocabulary takes no part.

    Padded rows would otherwise hold probability that the exported model, which has no such rows,
    gives to real tokens.
    """

    unpadded_vocab_size: int

    def compute_language_model_loss(
        self, labels: torch.Tensor, logits: torch.Tensor
    ) -> torch.Tensor:
        """Token losses [B, S] of `labels` [B, S] under `logits` [S, B, V / tensor_parallel]."""
        if logits.is_cuda and self.config.tensor_model_parallel_size == 1:
            ordered = labels.transpose(0, 1).contiguous()
            losses = compiled_token_losses(logits, ordered, self.unpadded_vocab_size)
            return losses.transpose(0, 1).contiguous()
        start = parallel_state.get_tensor_model_parallel_rank() * logits.shape[-1]
        real = max(0, self.unpadded_vocab_size - start)
        if real < logits.shape[-1]:
            padding = torch.arange(logits.shape[-1], device=logits.device) >= real
            logits = logits.masked_fill(padding, torch.finfo(logits.dtype).min)
        return super().compute_language_model_loss(labels, logits)


def transformer_config(
    config: ModelConfig,
    parallel: ParallelConfig,
    dtype: torch.dtype,
    *,
    fp8: str | None = None,
    moe_dispatcher: str = "alltoall",
) -> TransformerConfig:
    """Megatron-Core's own description of the model in a layout.

    Args:
        config: The model.
        parallel: Its layout.
        dtype: Of the parameters.
        fp8: Megatron-Core's `fp8`, the format of matrix products; needs Transformer Engine.
        moe_dispatcher: Megatron-Core's `moe_token_dispatcher_type`.

    Raises:
        ConfigError: The layout does not fit the model.
    """
    check_layout(config, parallel)
    on_gpu = device().type == "cuda"
    experts = {}
    if config.moe:
        # With the loss taken per token, Megatron-Core 0.16 multiplies both router losses by the
        # tokens of one tensor-parallel (or context-parallel) rank where it means those of all (seen
        # as other gradients than one rank's); the coefficients make up for it.
        split = parallel.tensor_parallel * parallel.context_parallel
        experts = {
            "num_moe_experts": config.moe.num_experts,
            "moe_router_topk": config.moe.top_k,
            "moe_ffn_hidden_size": config.ffn_hidden_size,
            # Softmax over all experts, then the top k as they are.
            "moe_router_pre_softmax": True,
            "moe_router_load_balancing_type": "aux_loss" if config.moe.aux_loss else "none",
            "moe_aux_loss_coeff": config.moe.aux_loss * split,
            "moe_z_loss_coeff": config.moe.z_loss * split or None,
            # Equal scores must fall the same way on every layout.
            "moe_router_dtype": "fp32" if dtype != torch.float64 else "fp64",
            "moe_token_dispatcher_type": moe_dispatcher,
        }
    return TransformerConfig(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.query_groups,
        kv_channels=config.size_of_head,
        ffn_hidden_size=config.ffn_hidden_size,
        normalization="RMSNorm",
        layernorm_epsilon=config.norm_eps,
        # Only of norms per head, which all ranks share, are gradients summed over ranks.
        qk_layernorm=config.qk_norm_kind == "head",
        activation_func=torch.nn.functional.silu,
        gated_linear_unit=True,
        add_bias_linear=False,
        add_qkv_bias=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=parallel.tensor_parallel,
        pipeline_model_parallel_size=parallel.pipeline_parallel,
        context_parallel_size=parallel.context_parallel,
        virtual_pipeline_model_parallel_size=virtual_stages(parallel),
        # Between two ranks a batch of several sends could be answered out of order.
        overlap_p2p_comm=parallel.pipeline_chunks > 1,
        batch_p2p_comm=parallel.pipeline_chunks == 1,
        expert_model_parallel_size=parallel.expert_parallel,
        expert_tensor_parallel_size=parallel.expert_tensor_parallel,
        # Under tensor parallelism each rank keeps a part of the sequence between the layers: less
        # memory for the same numbers, and MoE layers require it.
        sequence_parallel=parallel.tensor_parallel > 1,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp8=fp8,
        # Gradients are divided by the number of unmasked tokens of the whole global batch.
        calculate_per_token_loss=True,
        # `initialise` draws the weights. Megatron-Core must go through its own initialisation all
        # the same, since it marks there which weights are split: without the marks the gradient
        # norm under tensor parallelism is silently wrong.
        init_method=_leave_as_is,
        output_layer_init_method=_leave_as_is,
        embedding_init_method=_leave_as_is,
        use_cpu_initialization=not on_gpu,
        cross_entropy_loss_fusion=on_gpu,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=on_gpu,
        bias_dropout_fusion=on_gpu,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        **experts,
    )


def build_model(
    config: ModelConfig,
    parallel: ParallelConfig | None = None,
    *,
    sequence_length: int,
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    gather_logits: bool = False,
    fp8: str | None = None,
    moe_dispatcher: str = "alltoall",
) -> Any:
    """Build this rank's part of the model; `runtime.initialize` comes first.

    Args:
        config: The model.
        parallel: The layout that the runtime was initialised with.
        sequence_length: Longest sequence that the model is meant for, in tokens.
        seed: Draw initial weights from this seed, the same ones in every layout. None leaves
            them undefined, to be loaded.
        dtype: Of the parameters.
        gather_logits: Return logits over the whole vocabulary on every rank, for inference.
        fp8: As `transformer_config`.
        moe_dispatcher: As `transformer_config`.

    Returns:
        The model, a `CausalModel`, on this rank's device; `ModelChunks` of several under the
        interleaved pipeline schedule.

    Raises:
        ConfigError: The layout does not fit the model.
    """
    parallel = parallel or ParallelConfig()
    transformer = transformer_config(
        config, parallel, dtype, fp8=fp8, moe_dispatcher=moe_dispatcher
    )
    # Megatron-Core keeps one table of router losses a process, as long as its first model is deep.
    get_moe_layer_wise_logging_tracker().clear()
    # And one scale of them, in the shape in which it came first; a backward pass outside
    # Megatron-Core's schedules gives it another shape, which the schedules then refuse.
    MoEAuxLossAutoScaler.main_loss_backward_scale = None

    def part(stage: int | None) -> CausalModel:
        where = {"ignore_virtual": False, "vp_stage": stage}
        model = CausalModel(
            config=transformer,
            transformer_layer_spec=block_spec(config, transformer, stage),
            vocab_size=config.padded_vocab_size,
            max_sequence_length=sequence_length,
            pre_process=parallel_state.is_pipeline_first_stage(**where),
            post_process=parallel_state.is_pipeline_last_stage(**where),
            parallel_output=not gather_logits,
            share_embeddings_and_output_weights=config.tie_embeddings,
            position_embedding_type="rope",
            rotary_base=config.rope_base,
            vp_stage=stage,
        )
        model.unpadded_vocab_size = config.vocab_size
        return model

    chunks = virtual_stages(parallel)
    model = ModelChunks(part(stage) for stage in range(chunks)) if chunks else part(None)
    model.to(device())
    if seed is not None:
        initialise(model, config, seed)
    return model


def _leave_as_is(weight: torch.Tensor) -> torch.Tensor:
    return weight
