"""How evenly an MoE's routers spread the tokens: read from what they decide, layer by layer."""

import math
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.router import TopKRouter

from megatron_synth.runtime import device


class ExpertLoad:
    """Counts the tokens of every expert while the model trains.

    Each micro-batch adds one sum over the router's map to a tensor on the device: nothing is
    waited for before `take`, once a step.

    Args:
        model: This rank's part of the model, not wrapped.
        layers: Layers of the whole model.
        experts: Experts of a layer.
        top_k: Experts that a token goes to.
    """

    def __init__(self, model: torch.nn.Module, layers: int, experts: int, top_k: int) -> None:
        self._top_k = top_k
        # Tokens of each expert; last column: tokens that there were, times top_k.
        self._counts = torch.zeros(layers, experts + 1, dtype=torch.int64, device=device())
        for module in model.modules():
            if isinstance(module, TopKRouter):
                module.register_forward_hook(self._count)

    def _count(self, router: Any, inputs: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        del inputs
        if not router.training:
            return
        routed = output[1].detach()  # bool [tokens, experts]
        row = self._counts[router.layer_number - 1]
        row[:-1] += routed.sum(dim=0)
        row[-1] += routed.shape[0] * self._top_k

    def take(self) -> dict[str, float]:
        """The figures of the step since the last call, over all ranks; every rank calls it.

        Returns:
            `max_over_mean`: tokens of the fullest expert over those of the mean one, in the worst
            layer (1: even). `entropy`: of the shares of tokens by expert, over its maximum, mean
            of the layers (1: even). `dropped_tokens`: places that the routers left empty (0 in a
            dropless model).
        """
        if dist.get_world_size() > 1:
            dist.all_reduce(self._counts)
        counts = self._counts.double().cpu()
        self._counts.zero_()
        loads, wanted = counts[:, :-1], counts[:, -1]
        shares = loads / loads.sum(dim=1, keepdim=True)
        entropy = torch.special.entr(shares).sum(dim=1) / math.log(shares.shape[1])
        return {
            "max_over_mean": float((shares.amax(dim=1) * shares.shape[1]).max()),
            "entropy": float(entropy.mean()),
            "dropped_tokens": float(wanted.sum() - loads.sum()),
        }
