"""Samples to a batch that is cheap to hand from a DataLoader's worker to its parent."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import default_collate, get_worker_info

from megatron_synth.blending.windows import Sample

_FIELDS = {"tokens", "labels", "loss_mask", "position_ids", "dataset_id"}

Batch = dict[str, torch.Tensor]


def collate(samples: Sequence[Sample]) -> Any:
    """A batch of samples, for `DataLoader(BlendedStreams(...), collate_fn=collate)`.

    What the loader yields is what PyTorch's default gives: `tokens`, `labels`, `position_ids`
    int64[B, S], `loss_mask` float32[B, S], `dataset_id` int64[B]. From a worker it comes as one
    tensor, the windows' text, and is put together in the parent: handing over a tensor costs more
    than making it. Samples with further fields (attention `document`) or masked labels
    (`PairWindows`) are left to the default.
    """
    if (
        get_worker_info() is None
        or any(sample.keys() != _FIELDS for sample in samples)
        or not _is_unmasked(samples)
    ):
        return default_collate(list(samples))
    return _Packed(samples)


class _Packed:
    """A batch on its way: at the parent it arrives as a dict."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        columns = [
            torch.stack([torch.as_tensor(sample["tokens"]) for sample in samples]),
            torch.stack([torch.as_tensor(sample["labels"])[-1:] for sample in samples]),
            torch.tensor([[int(sample["dataset_id"])] for sample in samples]),
        ]
        packed = torch.cat(columns, dim=1)  # int64[B, S + 2]
        fits = int(packed.max()) < 1 << 31 and int(packed.min()) >= -(1 << 31)
        self._packed = packed.int() if fits else packed

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (self._packed,)


def _unpacked(packed: torch.Tensor) -> Batch:
    count, size = len(packed), packed.shape[1] - 2
    return {
        "tokens": packed[:, :size].to(torch.int64, copy=True).contiguous(),
        "labels": packed[:, 1 : size + 1].to(torch.int64, copy=True).contiguous(),
        "loss_mask": torch.ones(count, size, dtype=torch.float32),
        "position_ids": torch.arange(size).repeat(count, 1),
        "dataset_id": packed[:, -1].to(torch.int64, copy=True),
    }


def _is_unmasked(samples: Sequence[Sample]) -> bool:
    masks = torch.stack([torch.as_tensor(sample["loss_mask"]) for sample in samples])
    return bool((masks == 1).all())
