"""Several parts of one model on one rank: the interleaved pipeline schedule."""

from typing import Any

import torch


class ModelChunks(torch.nn.ModuleList):
    """The groups of layers that a rank holds, in the order of their virtual stages.

    Bare or wrapped for training; a model in one part is never put into one.
    """

    @property
    def config(self) -> Any:
        """Megatron-Core's description of the model, one for all parts."""
        return self[0].config

    def sharded_state_dict(self) -> dict[str, Any]:
        """The state by part; tensors have their global names, so that it fits every layout."""
        return {f"chunk{number}": chunk.sharded_state_dict() for number, chunk in enumerate(self)}

    def zero_grad_buffer(self) -> None:
        """Forget the gradients of wrapped parts."""
        for chunk in self:
            chunk.zero_grad_buffer()


def chunks_of(model: torch.nn.Module) -> list[Any]:
    """The parts of this rank's model: one, but under the interleaved schedule."""
    return [*model] if isinstance(model, ModelChunks) else [model]
