"""Which sample goes where: arithmetic on the step, so a restart needs no state."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from megatron_synth.config import DataError
from megatron_synth.training.ramp import BatchSizes, RampStage

Batch = dict[str, torch.Tensor]

_FIELDS = ("tokens", "labels", "loss_mask", "position_ids")


class SampleDataset(Protocol):
    """A map-style dataset of Megatron-Core's sample dicts.

    Item i: `tokens`, `labels`, `position_ids` int64[S], `loss_mask` float32[S], and, where losses
    are wanted by stream, `dataset_id`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is cut.

    Sample k of a global batch goes to micro-batch k // (micro_batch_size * ranks), and there to
    data-parallel rank (k // micro_batch_size) % ranks: micro-batches hold the same samples
    however many ranks there are.
    """

    global_batch_size: int
    micro_batch_size: int
    data_parallel: int
    data_rank: int

    def places(self) -> list[list[int]]:
        """For each micro-batch of this rank, the places k of its samples in the global batch."""
        size = self.micro_batch_size
        at_once = size * self.data_parallel
        starts = range(self.data_rank * size, self.global_batch_size, at_once)
        return [list(range(start, start + size)) for start in starts]


def read_batch(
    dataset: SampleDataset, plan: BatchPlan, first: int, sequence_length: int
) -> list[Batch]:
    """Read this rank's micro-batches of the global batch that starts at sample `first`.

    Samples beyond the dataset's end repeat sample 0 under a loss mask of zeros: they count
    nowhere. Where documents are kept apart a batch holds `cu_seqlens` int32[B, S + 1] as samples
    carry it. Each batch also holds `place` int64[B] and `dataset_id` int64[B].

    Raises:
        DataError: A sample is not of the length asked for, or only some keep documents apart.
    """
    return [
        _stack(dataset, [first + place for place in places], places, sequence_length)
        for places in plan.places()
    ]


def _stack(
    dataset: SampleDataset, indices: list[int], places: list[int], sequence_length: int
) -> Batch:
    length = len(dataset)
    samples = _fetch(dataset, [index if index < length else 0 for index in indices])
    apart = ["cu_seqlens" in sample for sample in samples]
    if any(apart) and not all(apart):
        raise DataError(
            "some windows keep documents apart and others do not",
            where=f"sample {indices[apart.index(False)]}",
            fix="Plan all corpora with one attention: cross or document.",
        )
    fields = (*_FIELDS, "cu_seqlens") if all(apart) else _FIELDS
    batch: Batch = {
        name: torch.stack([torch.as_tensor(sample[name]) for sample in samples]) for name in fields
    }
    if batch["tokens"].shape[1] != sequence_length:
        raise DataError(
            f"the data's windows have {batch['tokens'].shape[1]} tokens, "
            f"sequence_length is {sequence_length}",
            where=f"sample {indices[0]}",
            fix="Set training's sequence_length to the windows' length, or plan the blend anew.",
        )
    beyond = torch.tensor([index >= length for index in indices])
    batch["loss_mask"] = batch["loss_mask"].float().masked_fill(beyond[:, None], 0.0)
    batch["place"] = torch.tensor(places)
    batch["dataset_id"] = torch.tensor([int(sample.get("dataset_id", 0)) for sample in samples])
    return batch


def _fetch(dataset: SampleDataset, indices: list[int]) -> list[Mapping[str, Any]]:
    """The samples, together where the dataset can: as PyTorch's DataLoader does."""
    together = getattr(dataset, "__getitems__", None)
    if together is None:
        return [dataset[index] for index in indices]
    samples: list[Mapping[str, Any]] = together(indices)
    return samples


class BatchReader:
    """Yields the global batches of a run in order, reading one ahead in a thread."""

    def __init__(
        self,
        dataset: SampleDataset,
        plan: BatchPlan,
        sequence_length: int,
        ramp: tuple[RampStage, ...] = (),
    ) -> None:
        self.dataset = dataset
        self.plan = plan
        self.sizes = BatchSizes(plan.global_batch_size, ramp)
        self.sequence_length = sequence_length

    def read(self, first_step: int, last_step: int) -> Iterator[list[Batch]]:
        """Batches of the steps `first_step` to `last_step` (counted from 1, both included)."""

        def load(step: int) -> list[Batch]:
            plan = replace(self.plan, global_batch_size=self.sizes.at(step))
            return read_batch(
                self.dataset, plan, self.sizes.through(step - 1), self.sequence_length
            )

        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
            ahead = pool.submit(load, first_step)
            for step in range(first_step, last_step + 1):
                batches = ahead.result()
                if step < last_step:
                    ahead = pool.submit(load, step + 1)
                yield batches
