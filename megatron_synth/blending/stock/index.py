"""Stock datasets with an index cache that cannot go stale and needs no shared file system.

Stock keys its cache by the data's path, lets global rank 0 alone build, and writes file by file.
Here the cache is a folder whose name holds the data's content; the first process of each node
builds it, under another name until it is whole. Order and samples are stock's own.
"""

import os
import shutil
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core import __version__ as _megatron_version
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.utils import Split
from pydantic import Field

from megatron_synth.blending.index_files import IndexFolder
from megatron_synth.blending.plan import Plan
from megatron_synth.blending.stock.plan import SURPLUS
from megatron_synth.config import Config, RunError
from megatron_synth.runs import disk_errors, exclusive, fsync_folder, get_logger, hash_json
from megatron_synth.runtime import device

_PATIENCE = 3600.0  # seconds; another process of this node is building the same index
_NO_TOKEN = -2  # never in a corpus; -1 is stock's own sign for "no pad"

_log = get_logger(__name__)


class StockOptions(Config):
    """What of stock's options changes samples; as the old run had them."""

    pad: int | None = None
    """Id of the tokenizer's pad token: stock trains on no label that is one, and shows the model
    id 0 in its place. None, or equal to `eod`: none is masked."""
    eod: int | None = None
    """Id of the end-of-document token; needed for `eod_mask_loss` only."""
    eod_mask_loss: bool = False
    """Do not train on what follows an end-of-document token (`--eod-mask-loss`)."""
    create_attention_mask: bool = False
    """Put a bool[1, S, S] mask into every sample."""
    surplus: float = Field(default=SURPLUS, ge=0)
    """`--mid-level-dataset-surplus`; part of the order."""
    threads: int = Field(default=1, ge=1)
    """Threads that build corpora side by side."""


def order_of(plan: Plan, options: StockOptions) -> str:
    """What decides the samples besides the plan: empty in strict order."""
    if plan.order == "strict":
        return ""
    decides = options.model_dump(exclude={"threads"})
    return hash_json({**decides, "megatron": _megatron_version})


class StockRequest(Config):
    """One split of stock's builder: everything that decides its samples."""

    split: Literal["train", "valid", "test"]
    sequence_length: int
    seed: int
    paths: tuple[str, ...]
    """Path prefixes, without `.bin`."""
    weights: tuple[int, ...] | None
    """None for a single corpus."""
    content: tuple[str, ...]
    """Content hash of each corpus."""
    size: int | None
    """Samples to ask for; None: one epoch."""
    options: StockOptions

    @property
    def key(self) -> str:
        """Name of its cache: equal only for the same data, at the same paths, asked the same."""
        return hash_json({**self.model_dump(), "megatron": _megatron_version})


class _TokenIds:
    """The part of a tokenizer that stock datasets read."""

    vocab_size = None

    def __init__(self, options: StockOptions) -> None:
        self.eod = _NO_TOKEN if options.eod is None else options.eod
        self.unique_identifiers = OrderedDict(eod=options.eod, pad=options.pad)
        if options.pad is not None:
            self.pad = options.pad


def open_stock(request: StockRequest, cache: Path) -> BlendedDataset | GPTDataset:
    """The stock dataset of one split, its index built if need be.

    Where torch.distributed is initialised, every rank has to call this (stock's builder waits
    for all of them).

    Args:
        request: What to build.
        cache: Folder of this node for indices; it may be shared.

    Raises:
        RunError: The index could not be built on this or another node, or is somebody else's.
    """
    folder = cache / f"stock-{request.key}"
    if dist.is_initialized():
        _build_on_each_node(request, folder)
    elif not folder.is_dir():
        build_index(request, folder)
    if folder.stat().st_uid != os.getuid():  # stock reads it with pickle allowed
        raise RunError(
            "the index of stock datasets belongs to another user",
            where=folder,
            fix="Set MEGATRON_SYNTH_INDEX to a folder of your own on this node.",
        )
    return _stock(request, folder)


def build_index(request: StockRequest, folder: Path) -> None:
    """Let stock build its index, in a process that is in no process group; then `folder` is there.

    Of several processes of a node one builds, and the others wait.
    """
    IndexFolder(folder.parent).make_folder()
    lock = folder.with_name(f".{folder.name}.lock")
    with exclusive(lock, str(folder), _PATIENCE, remove=True):
        if folder.is_dir():
            return
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _log.info("building stock indices of %d corpora in %s", len(request.paths), folder)
        with disk_errors(partial), _alone():
            partial.mkdir(mode=0o700)
            _stock(request, partial)
        for path in partial.iterdir():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        partial.rename(folder)
        fsync_folder(folder.parent)


def _stock(request: StockRequest, folder: Path) -> BlendedDataset | GPTDataset:
    options = request.options
    split = Split[request.split]
    weights = None if request.weights is None else list(request.weights)
    config = GPTDatasetConfig(
        random_seed=request.seed,
        sequence_length=request.sequence_length,
        blend=(list(request.paths), weights),
        split=",".join("1" if each is split else "0" for each in Split),
        path_to_cache=str(folder),
        num_dataset_builder_threads=options.threads,
        tokenizer=_TokenIds(options),
        mid_level_dataset_surplus=options.surplus,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=options.eod_mask_loss,
        create_attention_mask=options.create_attention_mask,
    )
    sizes = [request.size if each is split else 0 for each in Split]
    builder = BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config)
    try:
        return builder.build()[split.value]
    except IndexError as error:  # a corpus holds fewer windows than the blend draws from it
        raise RunError(
            f"stock's blend draws more from a corpus than it was built for: {error}",
            where="order: megatron",
            fix=f"Raise options.surplus, now {options.surplus:g}; it is part of the order.",
        ) from error


@contextmanager
def _alone() -> Iterator[None]:
    """A process group of one: BlendedDataset asks for its rank before it writes its cache."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _build_on_each_node(request: StockRequest, folder: Path) -> None:
    """The first process of each node builds, in a child that is in no group; all wait for it."""
    failure = None
    local = os.environ.get("LOCAL_RANK", str(dist.get_rank()))
    if local == "0" and not folder.is_dir():
        failure = _build_in_child(request, folder)
    whole = torch.tensor([0 if failure else 1], device=device())
    dist.all_reduce(whole, op=dist.ReduceOp.MIN)
    if failure or not whole.item():
        raise RunError(
            "the index of stock datasets could not be built"
            + (f": {failure}" if failure else " by another rank; its log says why"),
            where=folder,
            fix="Look at the message, then start again: finished indices are kept.",
        )
    if not folder.is_dir():
        raise RunError(
            "no process of this node built the index of stock datasets",
            where=folder,
            fix="Start ranks with torchrun (it sets LOCAL_RANK), or share the cache's folder.",
        )


def _build_in_child(request: StockRequest, folder: Path) -> str | None:
    """None, or what went wrong."""
    environment: dict[str, Any] = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(folder)],
        input=request.model_dump_json(),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


if __name__ == "__main__":
    build_index(StockRequest.model_validate_json(sys.stdin.read()), Path(sys.argv[1]))
