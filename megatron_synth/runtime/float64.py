"""Training in float64: where Megatron-Core would round to float32 on the way.

For tests and studies on a CPU: in float64 a layout over ranks can be told from one rank to 1e-12,
which float32 hides under its own rounding. The replacements do what the originals do for every
other type.
"""

from typing import Any

import torch


def softmax(logits: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`torch.softmax`, which stays in float64 where float32 is asked for as the finer type."""
    if logits.dtype == torch.float64 and kwargs.get("dtype") == torch.float32:
        kwargs["dtype"] = torch.float64
    return torch.softmax(logits, *args, **kwargs)


def keep_float64_in_cross_entropy() -> None:
    """Let the vocabulary-parallel cross-entropy take float64 logits as they are."""
    from megatron.core.tensor_parallel.cross_entropy import VocabParallelCrossEntropy

    VocabParallelCrossEntropy.calculate_logits_max = staticmethod(_logits_max)


def _logits_max(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The original computes on in place: float64 logits are copied, as `float()` copies bf16."""
    finer = logits.clone() if logits.dtype == torch.float64 else logits.float()
    return finer, torch.max(finer, dim=-1)[0]
