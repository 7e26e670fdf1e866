"""Plans as the dataset provider of Megatron-LM's own `pretrain_gpt.py`.

Megatron asks for (train, valid, test) numbers of samples and gets three datasets; its sampler
then takes items consumed_train_samples, consumed_train_samples + 1, ... of the first, each data
parallel rank a part of each global batch. Order therefore stays the plan's for every layout.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from megatron.core.datasets.utils import Split

from megatron_synth.blending.chain import Chain
from megatron_synth.blending.index_files import IndexFolder
from megatron_synth.blending.plan import Plan
from megatron_synth.blending.stock.arguments import require_arguments
from megatron_synth.blending.stock.index import order_of
from megatron_synth.blending.stock.plan import require_stock_order_can
from megatron_synth.blending.stock.record import check_record, write_record
from megatron_synth.blending.stock.streams import StockOptions, StockStreams, stock_evaluation
from megatron_synth.blending.streams import ChainedStreams
from megatron_synth.config import ConfigError
from megatron_synth.runtime import is_main_rank

Datasets = tuple[Any, Any, Any]


class Provider(Protocol):
    """What Megatron-LM's `pretrain` takes as `train_valid_test_datasets_provider`."""

    is_distributed: bool

    def __call__(
        self, train_val_test_num_samples: Sequence[int | None], vp_stage: int | None = None
    ) -> Datasets:
        """The datasets of the three splits; None on ranks that need none."""


class TrainingWindows(torch.utils.data.Dataset[dict[str, Any]]):
    """The windows of a plan in the types that Megatron-LM's `get_batch` expects.

    As `BlendedStreams`, but `max_seqlen` (attention `document`) is an int32 tensor, as stock's
    is: other tensor-parallel ranks receive it as such. `split` tells Megatron's data loader that
    these are training samples. `dataset_id` stays; `get_batch` takes the keys that it knows.
    """

    split = Split.train

    def __init__(self, streams: ChainedStreams | StockStreams) -> None:
        self.streams = streams

    def __len__(self) -> int:
        return len(self.streams)

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """Sample `sample` of the run."""
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: list[int]) -> list[dict[str, Any]]:
        """Several samples, in the order asked for."""
        return [_typed(sample) for sample in self.streams.__getitems__(samples)]


def _typed(sample: Mapping[str, Any]) -> dict[str, Any]:
    if "max_seqlen" not in sample:
        return dict(sample)
    longest = torch.tensor(int(sample["max_seqlen"]), dtype=torch.int32)
    return {**sample, "max_seqlen": longest}


def blend_provider(
    plans: Sequence[Plan],
    get_args: Callable[[], Any],
    *,
    prefixes: Mapping[str, str | Path] | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    is_built_on_rank: Callable[[int | None], bool] | None = None,
    options: StockOptions | None = None,
    folder: IndexFolder | None = None,
) -> Provider:
    """A dataset provider that serves plans to stock `pretrain_gpt.py`.

    Args:
        plans: The plan; or the plans of all phases that are still to come, in order. Megatron
            counts samples over the whole run, and so does the dataset.
        get_args: `megatron.training.get_args`; asked when datasets are built, after the
            checkpoint was loaded.
        prefixes: Where corpora lie; one not named lies where the plan says.
        validation: Path prefix of a corpus for validation, served by a stock GPTDataset.
        test: The same for the test at the end.
        is_built_on_rank: Takes `vp_stage`; `pretrain_gpt.is_dataset_built_on_rank`. Where it
            answers False the datasets are None. By default every rank has them: they are
            mapped files.
        options: For plans with `order: megatron`.
        folder: Where this node keeps indices.

    Returns:
        A function for `pretrain`, with `is_distributed` set: every rank calls it.

    Raises:
        ConfigError: The plans do not follow each other, or ask for what their order cannot do.
            When called: Megatron's arguments are
            not the plan's (see `require_arguments`), or the checkpoint was trained by another
            plan (see `check_record`).
        DataError: When called: files are missing, or not what was planned.
    """
    chain = Chain(plans)
    if any(plan.order != plans[0].order or plan.attention != plans[0].attention for plan in plans):
        raise ConfigError("the phases differ in order or attention", where="blend")
    if plans[0].order == "megatron":
        for plan in plans:
            require_stock_order_can(plan)

    def provide(
        train_val_test_num_samples: Sequence[int | None], vp_stage: int | None = None
    ) -> Datasets:
        args = get_args()
        wanted, for_validation, for_test = train_val_test_num_samples
        require_arguments(chain, args, wanted, options or StockOptions())
        _require_validation(validation, for_validation)
        served = order_of(chain.plans[0], options or StockOptions())
        check_record(chain, args, served)
        first_here = os.environ.get("LOCAL_RANK", "0") == "0"
        train: ChainedStreams | StockStreams
        if plans[0].order == "megatron":
            train = StockStreams(
                plans[0], prefixes, check=first_here, options=options, folder=folder
            )
        else:
            train = ChainedStreams(chain, prefixes, folder=folder, check=first_here)
        others = [
            None
            if prefix is None or samples == 0
            else stock_evaluation(
                prefix,
                split,
                samples,
                sequence_length=plans[0].sequence_length,
                seed=plans[0].seed,
                options=options,
                folder=folder,
            )
            for split, prefix, samples in (
                ("valid", validation, for_validation),
                ("test", test, for_test),
            )
        ]
        if is_main_rank():
            write_record(chain, args, served)
        if is_built_on_rank is not None and not is_built_on_rank(vp_stage):
            return None, None, None
        return TrainingWindows(train), others[0], others[1]

    provide.is_distributed = True  # type: ignore[attr-defined]
    return provide  # type: ignore[return-value]


def _require_validation(prefix: str | Path | None, samples: int | None) -> None:
    if prefix is None and samples != 0:
        raise ConfigError(
            "Megatron is to validate, but the provider has no corpus for that",
            where="blend",
            fix="Give the prefix of a validation corpus, or --eval-iters 0.",
        )
