"""Megatron-Core's data-parallel wrapper and optimizer, from our settings."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer.optimizer_config import (
    OptimizerConfig,
    ParamKey,
    ParamWithNamePredicate,
)
from megatron.core.transformer.module import Float16Module

from megatron_synth.config import ConfigError
from megatron_synth.models.chunks import ModelChunks, chunks_of
from megatron_synth.training.config import OptimizerSettings, ScheduleSettings
from megatron_synth.training.schedule import learning_rate


def wrap_for_training(
    model: torch.nn.Module,
    *,
    distributed_optimizer: bool = False,
    recompute: bool = False,
    overlap: bool = False,
) -> Any:
    """Wrap a model so that Megatron-Core sums its gradients over the data-parallel ranks.

    Gradients are held and summed in float32 (float64 for a float64 model). With the distributed
    optimizer each rank gets the sums of its own share only. With `recompute` a layer keeps its
    input alone for the backward pass, and computes the rest again there. With `overlap` gradients
    are summed while the backward pass goes on.

    Raises:
        ConfigError: The distributed optimizer cannot hold this model.
    """
    config = model.config
    if distributed_optimizer and config.params_dtype == torch.float64:
        raise ConfigError(
            "the distributed optimizer keeps its state in float32",
            where="training.optimizer.distributed",
            fix="Set it to false, or training.precision to auto.",
        )
    if recompute:  # Megatron-Core's blocks look at these three at every forward pass
        config.recompute_granularity = "full"
        config.recompute_method = "uniform"
        config.recompute_num_layers = 1
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=config.params_dtype != torch.float64,
        overlap_grad_reduce=overlap,
        use_distributed_optimizer=distributed_optimizer,
        check_for_nan_in_grad=False,  # the loop checks the loss and the gradient norm
    )
    wrapped = [
        DistributedDataParallel(
            config=config,
            ddp_config=settings,
            module=Float16Module(config, part) if config.bf16 else part,
            disable_bucketing=number
            > 0,  # as Megatron-LM: later parts have nothing to overlap with
        )
        for number, part in enumerate(chunks_of(model))
    ]
    config.finalize_model_grads_func = finalize_model_grads
    if len(wrapped) > 1:
        config.no_sync_func = [part.no_sync for part in wrapped]
        return ModelChunks(wrapped)
    config.no_sync_func = wrapped[0].no_sync
    return wrapped[0]


def make_optimizer(model: Any, settings: OptimizerSettings, peak: float) -> MegatronOptimizer:
    """AdamW over the model's parameters, each rank's own share where `settings.distributed`."""
    config = OptimizerConfig(
        optimizer="adam",
        lr=peak,
        min_lr=0.0,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.eps,
        # At 0 some of Megatron-Core's optimizers skip the norm, by which the loop finds NaN.
        clip_grad=settings.clip or math.inf,
        bf16=model.config.bf16,
        params_dtype=model.config.params_dtype,
        use_distributed_optimizer=settings.distributed,
    )
    config.timers = None

    def is_free_of_decay(parameter: torch.nn.Parameter, name: str) -> bool:
        if parameter.dim() == 1:
            return not settings.decay_norms
        is_embedding = "word_embeddings" in name or "output_layer" in name
        return is_embedding and not settings.decay_embeddings

    key = ParamKey(with_name_predicate=ParamWithNamePredicate("no_decay", is_free_of_decay))
    overrides: Mapping[Any, Any] = {key: {"wd_mult": 0.0}}
    optimizer = get_megatron_optimizer(
        config, chunks_of(model), config_overrides=dict(overrides), use_gloo_process_groups=False
    )
    for part in parts_of(optimizer):
        use_fused_step(part.optimizer)
    return optimizer


def parts_of(optimizer: MegatronOptimizer) -> list[Any]:
    """The optimizers that a chain is made of; one that is no chain, alone."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def use_fused_step(optimizer: torch.optim.Optimizer | None, device_type: str = "cuda") -> None:
    """Let torch's AdamW update all of its parameters on a GPU in one kernel a group.

    Without Transformer Engine and Apex, whose Adam is fused, Megatron-Core takes torch's as it
    comes: a dozen passes over the state. To be called again after a state was loaded, since a
    checkpoint brings the setting of the run that wrote it.
    """
    if not isinstance(optimizer, torch.optim.AdamW):
        return
    for group in optimizer.param_groups:
        if any(parameter.device.type != device_type for parameter in group["params"]):
            continue
        group["fused"], group["foreach"] = True, False
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if "step" in state:  # the kernel reads it on the GPU
                step = torch.as_tensor(state["step"], dtype=torch.float32)
                state["step"] = step.to(parameter.device)


def set_step(
    optimizer: MegatronOptimizer,
    settings: OptimizerSettings,
    schedule: ScheduleSettings,
    step: int,
    steps: int,
) -> float:
    """Set the learning rate and weight decay of step `step`; return the learning rate."""
    rate = learning_rate(schedule, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["weight_decay"] = settings.weight_decay * group["wd_mult"]
    return rate
