"""The optimizer's state as part of a checkpoint: the same tensors in every layout."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_synth.training.optimizer import parts_of, use_fused_step

_PREFIX = "chained_"
_STEP = "common_step"


def optimizer_state(optimizer: MegatronOptimizer, weights: Any) -> Any:
    """The state to save; `weights` is the model's sharded state."""
    return optimizer.sharded_state_dict(weights, metadata=_metadata())


def state_to_fill(optimizer: MegatronOptimizer, weights: Any, checkpoint: Path) -> Any:
    """What `dist_checkpointing.load` is to fill from `checkpoint`."""
    for part in parts_of(optimizer):
        if isinstance(part, DistributedOptimizer):
            _allocate(part)
    # Checkpoints of runs with expert parallelism once had other names for these tensors.
    names = dist_checkpointing.load_tensors_metadata(str(checkpoint))
    prefix = any(name.startswith(_PREFIX) for name in names)
    return optimizer.sharded_state_dict(weights, is_loading=True, metadata=_metadata(prefix))


def set_optimizer_state(optimizer: MegatronOptimizer, loaded: dict[Any, Any]) -> None:
    """Go on from what was loaded.

    With expert parallelism there are two optimizers, numbered, without it there is one. Where the
    checkpoint has the other form its tensors are in place already; the step is the same for all
    of them, and all else in the parameter groups is settings, the run's own.
    """
    parts = parts_of(optimizer)
    numbered = sorted(key for key in loaded if isinstance(key, int))
    if "state" in loaded and numbered:
        step = loaded["state"].get(_STEP, loaded.get(0, {}).get("state", {}).get(_STEP))
        states = [loaded] if len(parts) == 1 else [loaded[number] for number in numbered]
        fitted = [_fit(part, state, step) for part, state in zip(parts, states, strict=True)]
        loaded = fitted[0] if len(parts) == 1 else dict(enumerate(fitted))
    optimizer.load_state_dict(loaded)
    for part in parts:
        if isinstance(part, DistributedOptimizer):
            _own_steps(part)
        use_fused_step(part.optimizer)


def _metadata(prefix: bool = False) -> dict[str, Any]:
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "chained_optim_avoid_prefix": not prefix,
    }


def _fit(part: Any, state: dict[Any, Any], step: Any) -> dict[str, Any]:
    groups = [
        {**{key: value for key, value in mine.items() if key != "params"}, "params": its["params"]}
        for mine, its in zip(part.param_groups, state["param_groups"], strict=True)
    ]
    tensors = {key: value for key, value in state["state"].items() if key != _STEP}
    return {"state": {**tensors, _STEP: step}, "param_groups": groups}


def _parameters(part: Any) -> Iterable[torch.Tensor]:
    return (parameter for group in part.optimizer.param_groups for parameter in group["params"])


def _allocate(part: Any) -> None:
    """Make room for the state: the original asks it for its step before it has any."""
    state = part.optimizer.state
    for parameter in _parameters(part):
        if not state[parameter]:
            state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def _own_steps(part: Any) -> None:
    """One step for each parameter: a shared one would count once for each of them."""
    for parameter in _parameters(part):
        state = part.optimizer.state[parameter]
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
