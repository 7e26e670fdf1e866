"""Checkpoints: Megatron-Core's distributed format, whole or absent. `saving.py` writes them."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.optimizer import MegatronOptimizer
from pydantic import BaseModel, ConfigDict, ValidationError
from torch.distributed.checkpoint import CheckpointException

from megatron_synth.config import DataError
from megatron_synth.models import ModelConfig
from megatron_synth.models.chunks import ModelChunks
from megatron_synth.training.config import TrainConfig
from megatron_synth.training.optimizer_state import set_optimizer_state, state_to_fill

STATE = "state.json"
_NAME = re.compile(r"step_(\d{8})")
_HIDDEN = re.compile(r"\.step_\d{8}\.(partial|removed)")
_EXTRA = "_extra_state"
# What Megatron-Core and torch raise where a file cannot be written or read; a damaged or full
# archive of torch.save is a RuntimeError, and CheckpointException is no Exception.
FAILURES = (CheckpointException, CheckpointingException, RuntimeError, OSError)


class CheckpointState(BaseModel):
    """`state.json` of a checkpoint: all that is no tensor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    """Optimizer steps done."""
    samples: int
    """Windows consumed."""
    model: ModelConfig
    train: TrainConfig
    data_hash: str
    """Hash of the data's plan, as the caller gave it."""
    ranks: int
    """World size of the run that wrote it."""
    seconds: float
    """Time of all steps so far, in all tries."""
    loss: float
    """Training loss of the last step."""
    validation: dict[str, float]
    """Newest validation losses."""
    account: dict[str, Any]
    """What the caller keeps with the weights of this step, for example the ledger."""
    dtype: str
    """Of the model's parameters while training: `float32` or `bfloat16`."""
    init_from: str | None
    """Checkpoint that the first weights came from; for the record, never compared."""


def checkpoint_at(folder: Path, step: int) -> Path:
    """The checkpoint after step `step`, there or not."""
    return folder / f"step_{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(checkpoint.name.removeprefix("step_"))


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps under `folder`; None where there is none.

    A folder under its final name is always whole.
    """
    return max(checkpoints_in(folder), default=None)


def clear_leftovers(folder: Path) -> None:
    """Remove what killed tries left half written or half removed; call it on rank 0 only."""
    if folder.is_dir():
        for path in folder.iterdir():
            if _HIDDEN.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)


def load_weights(checkpoint: Path, model: Any) -> None:
    """Load the weights into a model of any layout.

    Raises:
        DataError: A file of the checkpoint is missing or damaged.
    """
    set_weights(model, _load({"model": weights_of(model)}, checkpoint)["model"], checkpoint)


def load_checkpoint(checkpoint: Path, model: Any, optimizer: MegatronOptimizer) -> None:
    """Load weights and optimizer state.

    Raises:
        DataError: A file of the checkpoint is missing or damaged.
    """
    weights = weights_of(model)
    states = read_from(checkpoint, lambda: state_to_fill(optimizer, weights, checkpoint))
    loaded = _load({"model": weights, "optimizer": states}, checkpoint)
    set_weights(model, loaded["model"], checkpoint)
    set_optimizer_state(optimizer, loaded["optimizer"])


def read_state(checkpoint: Path) -> CheckpointState:
    """Read `state.json` of a checkpoint.

    Raises:
        DataError: This is no checkpoint of ours, or it is damaged.
    """
    path = checkpoint / STATE
    if not path.is_file():
        inside = latest_checkpoint(checkpoint) or latest_checkpoint(checkpoint / "checkpoints")
        raise DataError(
            f"no {STATE}: not a checkpoint",
            where=checkpoint,
            fix=f"Did you mean {inside}?" if inside else "Give a folder named step_XXXXXXXX.",
        )
    try:
        return CheckpointState.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise DataError(f"damaged checkpoint: {error}", where=path) from error


def _load(content: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = read_from(
        checkpoint, lambda: dist_checkpointing.load(content, checkpoint)
    )
    return loaded


def read_from(checkpoint: Path, read: Callable[[], Any]) -> Any:
    """What `read` gives; one clear message where files are missing or damaged."""
    try:
        return read()
    except (
        EOFError,
        UnpicklingError,
        ValueError,  # cut JSON
        *FAILURES,
    ) as error:
        raise DataError(
            f"the checkpoint cannot be read: {reason_of(error)}",
            where=checkpoint,
            fix="A file is missing or damaged; use another checkpoint, or train again.",
        ) from error


def reason_of(error: BaseException) -> str:
    """The last line of a long message: the cause."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def weights_of(model: Any) -> dict[str, Any]:
    """The sharded state without Transformer Engine's extra state.

    That holds FP8 scales, which are not used here, and would tie a checkpoint to machines that
    have Transformer Engine.
    """
    state: dict[str, Any] = model.sharded_state_dict()
    if isinstance(model, ModelChunks):
        return {part: _without_extra(its) for part, its in state.items()}
    return _without_extra(state)


def _without_extra(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if not name.endswith(_EXTRA)}


def set_weights(model: Any, weights: dict[str, Any], checkpoint: Path) -> None:
    """Give a model what was loaded for `weights_of` it."""
    if isinstance(model, ModelChunks):
        for part, its in zip(model, weights.values(), strict=True):
            set_weights(part, its, checkpoint)
        return
    found = model.load_state_dict(weights, strict=False)
    odd = [n for n in (*found.missing_keys, *found.unexpected_keys) if not n.endswith(_EXTRA)]
    if odd:
        raise DataError(
            f"the checkpoint's weights are not this model's: {', '.join(odd[:5])}",
            where=checkpoint,
            fix="Use the config that the checkpoint was trained with.",
        )


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, in no order."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]


def remove_checkpoint(checkpoint: Path) -> None:
    """Take away the final name first: what a kill leaves behind is no checkpoint."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
