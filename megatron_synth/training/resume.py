"""May this run go on from that checkpoint?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_synth.config import ConfigError
from megatron_synth.models import ModelConfig
from megatron_synth.runtime import device
from megatron_synth.training.checkpoints import CheckpointState
from megatron_synth.training.config import TrainConfig
from megatron_synth.training.schedule import learning_rate

# What must be the same for a resumed run to be the same run.
_FIXED = (
    "sequence_length",
    "global_batch_size",
    "batch_ramp",
    "optimizer",
    "schedule",
    "seed",
)


def check_resume(
    before: CheckpointState, now: CheckpointState, checkpoint: Path, *, branch: bool = False
) -> CheckpointState:
    """The state to go on from: that of `checkpoint`, under the settings of `now`.

    Args:
        before: State of the checkpoint.
        now: State of this run before its first step.
        checkpoint: Where `before` is from, for messages.
        branch: The run goes on in another folder, and its schedule may be another one.

    Raises:
        ConfigError: The checkpoint is of other data, another model or other settings.
    """
    if before.data_hash != now.data_hash:
        raise ConfigError(
            f"the checkpoint was trained on other data (hash {before.data_hash[:12]}, "
            f"now {now.data_hash[:12]})",
            where=checkpoint,
            fix="Give the data that the run began with, declare other data as a phase that follows "
            "it (blend plan --after), or use another output folder.",
        )
    require_same_model(before.model, now.model, checkpoint)
    if before.dtype != now.dtype:
        raise ConfigError(
            f"the checkpoint was trained in {before.dtype}, this run would go on in {now.dtype}",
            where=checkpoint,
            fix="Go on on a machine of the same kind, set training.precision to fp32 on both, or "
            "use another output folder; init_from starts a new run from these weights.",
        )
    changed = [
        f"{name}: {old} before, {new} now"
        for name, old, new in (
            *(
                (key, getattr(before.train, key), getattr(now.train, key))
                for key in _FIXED
                if not (branch and key == "schedule")
            ),
            ("model.moe", before.model.moe, now.model.moe),  # the router losses' coefficients
        )
        if old != new
    ]
    changed += _other_experts(before, now)
    if branch and now.train.steps <= before.step:
        changed.append(f"steps: {before.step} are done, {now.train.steps} in all now")
    elif not branch:
        changed += _other_length(before, now)
    if changed:
        raise ConfigError(
            f"the checkpoint was trained with other settings ({'; '.join(changed)})",
            where=checkpoint,
            fix="Use the settings that the run began with, or another output folder; "
            "init_from starts a new run from these weights.",
        )
    update = {"train": now.train, "ranks": now.ranks}
    if branch:
        update["init_from"] = str(checkpoint)
    return before.model_copy(update=update)


def _other_experts(before: CheckpointState, now: CheckpointState) -> list[str]:
    """Only the distributed optimizer's state is tied to how experts were spread."""
    old, new = before.train.expert_parallel, now.train.expert_parallel
    if old == new or not now.train.optimizer.distributed:
        return []
    return [f"expert_parallel: {old} before, {new} now, with optimizer.distributed"]


def _other_length(before: CheckpointState, now: CheckpointState) -> list[str]:
    """A run may become longer, or shorter, if the steps so far would have been the same."""
    old, new = before.train, now.train
    if old.steps == new.steps:
        return []
    said = f"steps: {old.steps} before, {new.steps} now"
    if new.steps < before.step:
        return [f"{said}, and {before.step} are done"]
    if old.schedule == new.schedule:
        rates = [(old.schedule_in_steps, old.steps), (new.schedule_in_steps, new.steps)]
        for step in range(1, before.step + 1):
            was, would_be = (learning_rate(schedule, step, steps) for schedule, steps in rates)
            if was != would_be:
                return [f"{said}: step {step} had rate {was:g}, it would be {would_be:g}"]
    return []


def require_same_optimizer(before: CheckpointState, now: CheckpointState, checkpoint: Path) -> None:
    """Refuse optimizer state that means something else in this run.

    Weight decay and clipping may change: they act on a step, not on what is kept.

    Raises:
        ConfigError: AdamW's settings or the precision differ, or the distributed optimizer's
            experts.
    """
    pairs = [
        *(
            (name, getattr(before.train.optimizer, name), getattr(now.train.optimizer, name))
            for name in ("beta1", "beta2", "eps", "decay_norms", "decay_embeddings", "distributed")
        ),
        ("precision", before.dtype, now.dtype),
    ]
    changed = [f"{name}: {old} there, {new} here" for name, old, new in pairs if old != new]
    changed += _other_experts(before, now)
    if changed:
        raise ConfigError(
            f"the checkpoint's optimizer had other settings ({'; '.join(changed)})",
            where=checkpoint,
            fix="Use its settings, or set init_optimizer: reset.",
        )


def require_same_model(theirs: ModelConfig, ours: ModelConfig, checkpoint: Path) -> None:
    """Refuse weights that mean something else in this model.

    Raises:
        ConfigError: The shapes differ.
    """
    _refuse_differences(theirs.shape, ours.shape, checkpoint)


def resolve_dtype(config: TrainConfig) -> torch.dtype:
    """The parameters' type on this machine.

    Raises:
        ConfigError: bf16 was asked for without CUDA, or fp64 with it.
    """
    on_gpu = device().type == "cuda"
    if config.precision == "fp64":
        if on_gpu:
            raise ConfigError(
                "fp64 training runs on a CPU only: Megatron-Core's CUDA path computes norms and "
                "losses in float32",
                where="training.precision",
                fix="Set it to auto, or hide the GPUs (CUDA_VISIBLE_DEVICES=).",
            )
        return torch.float64
    if config.precision == "bf16" and not on_gpu:
        raise ConfigError(
            "bf16 training needs CUDA", where="training.precision", fix="Set it to auto or fp32."
        )
    return torch.bfloat16 if on_gpu and config.precision != "fp32" else torch.float32


def _refuse_differences(
    before: Mapping[str, Any], now: Mapping[str, Any], checkpoint: Path
) -> None:
    changed = [
        f"{key}: {before[key]} there, {now[key]} here" for key in now if before[key] != now[key]
    ]
    if changed:
        raise ConfigError(
            f"the checkpoint is of another model ({'; '.join(changed)})",
            where=checkpoint,
            fix="Use that model's config, or start without this checkpoint.",
        )
