"""What earlier steps came to, on every rank: rank 0 reads `metrics.jsonl` and tells the others."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_synth.runs import fsync_folder, read_metrics
from megatron_synth.runs.atomic import disk_errors
from megatron_synth.runtime import device, is_main_rank
from megatron_synth.training.rules import PlateauRule, StoppingSettings


class History:
    """Losses that the stopping rules look back at; the same on every rank.

    Args:
        metrics: The run's `metrics.jsonl`.
        step: Records after this step are of steps that will be done again.
        settings: The rules; what none of them needs is not read.
    """

    def __init__(self, metrics: Path, step: int, settings: StoppingSettings) -> None:
        self.training: list[float] = []
        """Losses of the newest steps, in order."""
        self.epochs: list[float] = []
        """Losses of the plateau's validation set, epoch by epoch."""
        if settings.spike is None and settings.plateau is None:
            return
        records = [r for r in read_metrics(metrics) if r["step"] <= step] if is_main_rank() else []
        if settings.spike is not None:
            self.training = shared([r["loss"] for r in records[-settings.spike.window :]])
        if settings.plateau is not None:
            self.epochs = shared(_epoch_losses(records, settings.plateau))


def _epoch_losses(records: Sequence[Mapping[str, Any]], rule: PlateauRule) -> list[float]:
    return [
        record["validation"][rule.validation]
        for record in records
        if ends_epoch(record["step"], rule) and rule.validation in record.get("validation", {})
    ]


def ends_epoch(step: int, rule: PlateauRule) -> bool:
    """Whether step `step` is the last of an epoch."""
    return rule.epoch_steps is not None and step % rule.epoch_steps == 0


def shared(values: Sequence[float]) -> list[float]:
    """Rank 0's values, on every rank."""
    if dist.get_world_size() == 1:
        return list(values)
    number = torch.tensor([len(values)], device=device())
    dist.broadcast(number, 0)
    content = torch.zeros(int(number.item()), dtype=torch.float64, device=device())
    if is_main_rank():
        content += torch.tensor(values, dtype=torch.float64, device=device())
    if len(content):
        dist.broadcast(content, 0)
    return [float(value) for value in content.cpu()]


def keep_best(checkpoint: Path, folder: Path) -> Path:
    """Keep a checkpoint in `folder` as well, in place of the one there; call it on rank 0 only.

    Its files are linked, which takes no room, or copied where the disk knows no links.

    Raises:
        RunError: The disk is full.
    """
    final = folder / checkpoint.name
    if final.is_dir():
        return final
    partial = folder / f".{checkpoint.name}.partial"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(checkpoint, partial, copy_function=_link)
        partial.rename(final)
        fsync_folder(folder)
        for other in folder.iterdir():
            if other != final:
                shutil.rmtree(other, ignore_errors=True)
    return final


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
