"""Writing checkpoints: under a temporary name, then renamed; while training goes on, if asked."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from megatron.core.optimizer import MegatronOptimizer
from torch.distributed import checkpoint as torch_checkpoint

from megatron_synth.config import MegatronSynthError, RunError
from megatron_synth.runs import fsync_folder, write_json
from megatron_synth.runs.atomic import disk_errors
from megatron_synth.runtime import host_group, is_main_rank
from megatron_synth.training.checkpoints import (
    FAILURES,
    STATE,
    CheckpointState,
    checkpoint_at,
    checkpoints_in,
    reason_of,
    remove_checkpoint,
    step_of,
    weights_of,
)
from megatron_synth.training.optimizer_state import optimizer_state


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay on disk.

    Attributes:
        newest: How many of the newest.
        every: Those of every this many steps too; None: no others.
    """

    newest: int
    every: int | None = None

    def outlived(self, checkpoints: Iterable[Path]) -> list[Path]:
        """Those of `checkpoints` that do not stay."""
        return [
            old
            for old in sorted(checkpoints)[: -self.newest]
            if self.every is None or step_of(old) % self.every
        ]


def save_checkpoint(
    folder: Path,
    model: Any,
    optimizer: MegatronOptimizer,
    state: CheckpointState,
    *,
    keep: Retention,
) -> Path:
    """Write a checkpoint under a temporary name, rename it, and remove those not to `keep`.

    Every rank takes part.

    Returns:
        The checkpoint's folder.

    Raises:
        RunError: The disk is full, or a file cannot be written; older checkpoints stay as they
            are, the half-written one is removed. Every rank raises it, but for a file that rank 0
            writes before the weights: there rank 0 raises it and the launcher ends the rest.
    """
    return _prepare(folder, model, optimizer, state, keep=keep, copy=False).write()


def save_weights(final: Path, model: Any, state: CheckpointState) -> None:
    """Write a checkpoint without optimizer state: a start for new runs, never a resume.

    Args:
        final: The checkpoint's folder.
        model: This rank's part; every rank takes part.
        state: What the model is; step 0.

    Raises:
        RunError: As `save_checkpoint`.
    """
    _begun(final, lambda: {"model": weights_of(model)}, state, keep=None, copy=False).write()


class CheckpointSaver:
    """Saves the checkpoints of a run, one at a time; every rank takes part.

    In the background, training stands still while a copy is made in the host's memory (as much as
    this rank writes: 12 bytes a parameter in float32, 14 in bf16, over the ranks that share them),
    and goes on while a thread writes the copy. A save waits for the one before.

    Args:
        folder: Of the checkpoints.
        keep: Which of the older ones stay.
        background: Whether training goes on meanwhile.
    """

    def __init__(self, folder: Path, *, keep: Retention, background: bool) -> None:
        self._folder, self._keep, self._background = folder, keep, background
        self._writing: Future[Path] | None = None

    def save(self, model: Any, optimizer: MegatronOptimizer, state: CheckpointState) -> None:
        """Begin to save, when the save before is done; without `background`, save.

        Raises:
            RunError: As `save_checkpoint`; of the save before, too.
        """
        self.wait()
        prepared = _prepare(
            self._folder, model, optimizer, state, keep=self._keep, copy=self._background
        )
        if not self._background:
            prepared.write()
            return
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing = pool.submit(prepared.write)
        pool.shutdown(wait=False)  # the thread ends with its work; nobody waits for it here

    def wait(self) -> None:
        """Wait until what was begun is saved.

        Raises:
            RunError: As `save_checkpoint`.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    @property
    def failed(self) -> bool:
        """Whether the save in the background has failed; `wait` raises why."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None


class _Shards(TorchDistSaveShardedStrategy):
    """Megatron-Core's `torch_dist` format, of which the shards are kept to be written later.

    Its own strategy forks writers and starts a manager process that imports `__main__` again; that
    hangs unguarded scripts and costs seconds for a small model. The files are the same.
    """

    def __init__(self, copy: bool) -> None:
        super().__init__("torch_dist", 1)
        self._copy = copy
        self.state: dict[str, Any] = {}

    def save(self, sharded_state_dict: Any, checkpoint_dir: Path) -> None:
        """Keep all shards of which this rank is the main owner, or a copy of them."""
        del checkpoint_dir
        state, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, True)
        if self._copy:
            for shard in (shard for shards in state.values() for shard in shards):
                if isinstance(shard, ShardedTensor):
                    shard.data = _copied(shard.data)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        self.state = mcore_to_pyt_state_dict(state, False)


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in the host's memory; from a GPU it is there after the next synchronisation."""
    # Pinned memory takes a GPU's data several times faster, and torch keeps it for the next save.
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return copy.copy_(tensor.detach(), non_blocking=True)


@dataclass(frozen=True)
class _Prepared:
    """A checkpoint of which the shards are still to be written.

    Attributes:
        final: Its name when it is whole.
        partial: Its name until then.
        shards: Of this rank.
        state: Its `state.json`.
        keep: Which of the older ones stay; None: all.
    """

    final: Path
    partial: Path
    shards: dict[str, Any]
    state: CheckpointState
    keep: Retention | None

    def write(self) -> Path:
        """Write it and rename it; every rank takes part, in a thread of its own or not."""
        group, failure = host_group(), None
        try:
            with _errors(self.final, self.partial):
                torch_checkpoint.save(
                    self.shards,
                    storage_writer=torch_checkpoint.FileSystemWriter(
                        self.partial, single_file_per_rank=True, sync_files=True
                    ),
                    planner=MCoreSavePlanner(
                        dedup_replicated_tensors=False, flatten_state_dict=False
                    ),
                    process_group=group,
                )
                if is_main_rank():
                    self._finish()
        except MegatronSynthError as error:
            failure = error
        failed = torch.tensor([failure is not None], dtype=torch.int32)
        dist.all_reduce(failed, op=dist.ReduceOp.MAX, group=group)
        if failure is not None:
            raise failure
        if failed.item():
            raise RunError(
                "the checkpoint could not be written: another rank says why", where=self.final
            )
        return self.final

    def _finish(self) -> None:
        folder = self.final.parent
        write_json(self.partial / STATE, self.state.model_dump(mode="json"))
        with disk_errors(folder):
            _fsync_all(self.partial)
            if self.final.exists():
                remove_checkpoint(self.final)
            self.partial.rename(self.final)
            fsync_folder(folder)
        if self.keep is not None:
            for old in self.keep.outlived(checkpoints_in(folder)):
                remove_checkpoint(old)


def _prepare(
    folder: Path,
    model: Any,
    optimizer: MegatronOptimizer,
    state: CheckpointState,
    *,
    keep: Retention,
    copy: bool,
) -> _Prepared:
    def content() -> dict[str, Any]:
        weights = weights_of(model)
        return {"model": weights, "optimizer": optimizer_state(optimizer, weights)}

    return _begun(checkpoint_at(folder, state.step), content, state, keep=keep, copy=copy)


def _begun(
    final: Path,
    content: Callable[[], dict[str, Any]],
    state: CheckpointState,
    *,
    keep: Retention | None,
    copy: bool,
) -> _Prepared:
    """Write all but the shards; every rank takes part, where it trains."""
    partial, shards = final.with_name(f".{final.name}.partial"), _Shards(copy)
    with _errors(final, partial):
        if is_main_rank():
            with disk_errors(final.parent):
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        dist.barrier()
        dist_checkpointing.save(content(), str(partial), shards)
    return _Prepared(final, partial, shards.state, state, keep)


@contextmanager
def _errors(final: Path, partial: Path) -> Iterator[None]:
    """One clear message of what fails inside; nothing half-written stays."""
    try:
        yield
    except (MegatronSynthError, *FAILURES) as error:
        if is_main_rank():  # at once: what follows needs the room that it takes
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, MegatronSynthError):
            raise
        raise RunError(
            f"the checkpoint could not be written: {reason_of(error)}",
            where=final.parent,
            fix="Most often the disk is full: make room there (or raise the limit on file sizes) "
            "and run the same command again; it goes on from the last whole checkpoint.",
        ) from error


def _fsync_all(folder: Path) -> None:
    """Put every file below `folder`, and the folders' lists of names, on disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with (Path(parent) / name).open("rb") as handle:
                os.fsync(handle.fileno())
        fsync_folder(Path(parent))
