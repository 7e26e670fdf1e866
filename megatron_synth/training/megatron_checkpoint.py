"""Checkpoints that Megatron-LM or another user of Megatron-Core wrote, to start from."""

from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.dist_checkpointing.strategies.common import TorchCommonLoadStrategy

from megatron_synth.config import ConfigError, DataError
from megatron_synth.training.checkpoints import STATE, read_from, set_weights, weights_of

_TRACKER = "latest_checkpointed_iteration.txt"
_METADATA = "metadata.json"
# What such a checkpoint holds beside the model's parameters.
_BESIDE = ("optimizer.", "chained_", "rng_state", "rerun_state")


class _WeightsAlone(TorchCommonLoadStrategy):
    """Leaves `common.pt` unread: it holds settings as pickled objects of the one who wrote it."""

    def load_common(self, checkpoint_dir: Any) -> dict[str, Any]:
        """Nothing."""
        del checkpoint_dir
        return {}


def is_megatron(start: Path) -> bool:
    """Whether `start` is a distributed checkpoint not of ours, or a folder of such."""
    return (start / _TRACKER).is_file() or (
        (start / _METADATA).is_file() and not (start / STATE).is_file()
    )


def load_megatron(start: Path, model: Any) -> None:
    """Load the weights of a `torch_dist` checkpoint, written in any layout.

    What its tensors cannot show is the caller's to know: the base of the rotary positions, the
    norms' epsilon, which tokenizer. A vocabulary padded to another length is cut or padded.

    Args:
        start: `iter_0001000`, or the folder with `latest_checkpointed_iteration.txt`.
        model: This rank's part, in any layout.

    Raises:
        ConfigError: Its tensors are not those of this model.
        DataError: A file is missing or damaged, or this is another format.
    """
    folder = _newest(start)
    weights = weights_of(model)
    found = read_from(folder, lambda: dist_checkpointing.load_tensors_metadata(str(folder)))
    _require_same_tensors(weights_of(model), found, folder)
    loaded = read_from(
        folder,
        lambda: dist_checkpointing.load(
            {"model": weights}, str(folder), common_strategy=_WeightsAlone()
        ),
    )
    set_weights(model, loaded["model"], folder)


def _newest(start: Path) -> Path:
    tracker = start / _TRACKER
    if not tracker.is_file():
        return start
    said = tracker.read_text(encoding="utf-8").strip()
    folder = start / (f"iter_{int(said):07d}" if said.isdigit() else said)
    if not (folder / _METADATA).is_file():
        raise DataError(
            f"{_TRACKER} says {said!r}, and {folder.name} is not a distributed checkpoint",
            where=start,
            fix="Checkpoints of the older form (mp_rank_00/model_optim_rng.pt) are converted with "
            "Megatron-LM's own tools first (--ckpt-convert-format torch_dist).",
        )
    return folder


def _require_same_tensors(weights: Any, found: Any, folder: Path) -> None:
    apply_factories(weights)
    ours = {t.key: t for t in nested_values(weights) if isinstance(t, ShardedTensor)}
    wrong = [f"{name} is missing" for name in ours if name not in found]
    wrong += [
        f"{name} has shape {tuple(found[name].global_shape)}, this model's is "
        f"{tuple(tensor.global_shape)}"
        for name, tensor in ours.items()
        if name in found and not _fits(tensor, found[name])
    ]
    wrong += [
        f"{name} has no place in this model"
        for name in found
        if name not in ours and not name.startswith(_BESIDE) and "_extra_state" not in name
    ]
    if wrong:
        raise ConfigError(
            f"the checkpoint is of another model ({'; '.join(wrong[:3])})",
            where=folder,
            fix="Give the model that it was trained as.",
        )


def _fits(ours: ShardedTensor, theirs: ShardedTensor) -> bool:
    if ours.global_shape == theirs.global_shape:
        return True
    # The padding of a vocabulary depends on who wrote it; all else has to be the same.
    return bool(ours.allow_shape_mismatch) and ours.global_shape[1:] == theirs.global_shape[1:]
