"""Megatron-Core's distributed optimizer without Apex and Transformer Engine.

With torch's AdamW in it a resume fails, or goes wrong from the second step on: the state is asked
for its step before there is any, the step is looked for among the checkpoint's tensors, and all
parameters come to share one step, which then counts once for each of them. Tested with
Megatron-Core 0.16.1. Where Apex or Transformer Engine is installed nothing is changed.
"""

from typing import Any
from unittest import mock

import torch


def mend() -> None:
    """Put it right; calling it again costs nothing."""
    from megatron.core.optimizer import distrib_optimizer

    cls: Any = distrib_optimizer.DistributedOptimizer
    if distrib_optimizer.HAVE_APEX_OR_TE or getattr(cls, "mended", False):
        return
    set_tensors, shards = (
        cls._set_main_param_and_optimizer_states,
        cls._build_model_and_main_param_groups,
    )

    def set_all_but_the_step(self: Any, parameter: Any, tensors: dict[str, Any]) -> None:
        group, place = self.model_param_group_index_map[parameter]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][place]]
        set_tensors(self, parameter, {**tensors, "step": state["step"]})

    def shards_on_this_device(*args: Any, **kwargs: Any) -> Any:
        with mock.patch.object(torch.Tensor, "type", _type):
            return shards(*args, **kwargs)

    cls._set_main_param_and_optimizer_states = set_all_but_the_step
    if not torch.cuda.is_available():
        cls._build_model_and_main_param_groups = staticmethod(shards_on_this_device)
    cls.mended = True


_real_type = torch.Tensor.type


def _type(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """The original sorts parameters by the name of their type, and knows those of CUDA alone."""
    name = _real_type(tensor, *args, **kwargs)
    return name.replace("torch.", "torch.cuda.", 1) if isinstance(name, str) else name
