"""`order: megatron`: a plan served by Megatron-Core's stock datasets, in their own order."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.gpt_dataset import GPTDataset

from megatron_synth.blending.index_files import IndexFolder
from megatron_synth.blending.plan import Plan
from megatron_synth.blending.sizes import corpus_size, path_prefix
from megatron_synth.blending.stock.index import StockOptions, StockRequest, open_stock
from megatron_synth.blending.stock.plan import (
    planned_prefixes,
    require_stock_order_can,
    stock_corpora,
)
from megatron_synth.config import DataError

__all__ = ["StockOptions", "StockStreams", "stock_evaluation"]


class StockStreams(torch.utils.data.Dataset[dict[str, Any]]):
    """The first plan.samples samples of stock's blend of the plan's corpora.

    Built by `BlendedMegatronDatasetBuilder(GPTDataset, ...)` with the planned windows as weights;
    a single corpus gives a GPTDataset, several a BlendedDataset. Item i is stock's own sample
    dict, with `dataset_id` (int) the corpus's index in `plan.corpora`: `tokens`, `labels`,
    `position_ids` int64[S], `loss_mask` float32[S], and `attention_mask` bool[1, S, S] where
    asked for. Corpora without windows in the plan are left out.

    Where torch.distributed is initialised, every rank has to construct it (see `open_stock`).

    Args:
        plan: A plan with `order: megatron`.
        prefixes: Path of each corpus; one not named lies where the plan says.
        check: Compare content hashes with the plan; one check on a machine is enough.
        options: What the old run had set.
        folder: Where this node keeps indices; a shared folder will do as well.

    Raises:
        ConfigError: The plan asks for what stock cannot do, or a corpus has no path.
        DataError: Files are missing, damaged, or not what was planned.
        RunError: The index could not be built.
    """

    def __init__(
        self,
        plan: Plan,
        prefixes: Mapping[str, str | Path] | None = None,
        *,
        check: bool = True,
        options: StockOptions | None = None,
        folder: IndexFolder | None = None,
    ) -> None:
        require_stock_order_can(plan)
        self.plan = plan
        self._options = options or StockOptions()
        self._folder = folder or IndexFolder()
        self._paths = planned_prefixes(plan, prefixes)
        self._corpora = stock_corpora(plan, self._options.surplus)
        if check:
            _check_content(plan, self._paths)
        names = [c.name for c in self._corpora]
        self.dataset: BlendedDataset | GPTDataset = open_stock(
            StockRequest(
                split="train",
                sequence_length=plan.sequence_length,
                seed=plan.seed,
                paths=tuple(str(self._paths[name]) for name in names),
                weights=tuple(c.weight for c in self._corpora) if len(names) > 1 else None,
                content=tuple(str(plan.corpus(name).content_hash) for name in names),
                size=plan.samples,
                options=self._options,
            ),
            self._folder.folder,
        )

    def __len__(self) -> int:
        """plan.samples; stock's dataset holds somewhat more."""
        return self.plan.samples

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """Sample `sample`; IndexError past the end."""
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} of {len(self)}")
        served = self.dataset[sample]
        corpus = self._corpora[int(served.get("dataset_id", 0))]
        return {**served, "dataset_id": corpus.dataset_id}

    def __getitems__(self, samples: list[int]) -> list[dict[str, Any]]:
        """Several samples, in the order asked for."""
        return [self[sample] for sample in samples]

    def counted(self, step: int) -> dict[str, int]:
        """Windows that each corpus of the plan has served after `step` steps, counted.

        From stock's own index: its shares hold on the whole, not step by step. At the last step
        they differ from the plan's by a window or two.
        """
        assert 0 <= step <= self.plan.steps, f"step {step} of {self.plan.steps}"
        served = step * self.plan.global_batch_size
        if isinstance(self.dataset, BlendedDataset):
            index = self.dataset.dataset_index[:served]
            counts = np.bincount(index, minlength=len(self._corpora)).tolist()
        else:
            counts = [served]
        by_name = {c.name: n for c, n in zip(self._corpora, counts, strict=True)}
        return {corpus.name: by_name.get(corpus.name, 0) for corpus in self.plan.corpora}

    @property
    def epochs(self) -> dict[str, int]:
        """Whole epochs that stock made of each corpus, the surplus included."""
        return {corpus.name: corpus.epochs for corpus in self._corpora}

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the files for itself."""
        return (_reopen, (self.plan, self._paths, self._options, self._folder))


def _reopen(
    plan: Plan, paths: Mapping[str, Path], options: StockOptions, folder: IndexFolder
) -> StockStreams:
    return StockStreams(plan, paths, check=False, options=options, folder=folder)


def stock_evaluation(
    prefix: str | Path,
    split: str,
    samples: int | None,
    *,
    sequence_length: int,
    seed: int,
    options: StockOptions | None = None,
    folder: IndexFolder | None = None,
) -> GPTDataset:
    """A stock GPTDataset over a whole corpus, for validation or test.

    Args:
        prefix: Path of the corpus.
        split: `valid` or `test`.
        samples: At least so many; None: one epoch.
        sequence_length: Tokens a window.
        seed: Seed of its order.
        options: As the old run had them.
        folder: Where this node keeps indices.

    Raises:
        DataError: No such dataset, or a damaged one.
        RunError: The index could not be built.
    """
    path = path_prefix(prefix).absolute()
    return open_stock(
        StockRequest.model_validate(
            {
                "split": split,
                "sequence_length": sequence_length,
                "seed": seed,
                "paths": (str(path),),
                "weights": None,
                "content": (str(corpus_size(path).content_hash),),
                "size": samples,
                "options": options or StockOptions(),
            }
        ),
        (folder or IndexFolder()).folder,
    )


def _check_content(plan: Plan, paths: Mapping[str, Path]) -> None:
    for name, path in paths.items():
        planned, found = plan.corpus(name), corpus_size(path)
        if found.content_hash != planned.content_hash:
            raise DataError(
                f"corpus {name!r} is not what was planned: {found.tokens:,} tokens, content "
                f"{str(found.content_hash)[:12]} here; {planned.tokens:,} tokens, content "
                f"{str(planned.content_hash)[:12]} in the plan",
                where=path,
                fix="Solve the plan again for this data, or restore the data that was planned.",
            )
