"""Copies of `metrics.jsonl` for those who look elsewhere: TensorBoard, Weights & Biases."""

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from megatron_synth.config import Config, ConfigError
from megatron_synth.runs import hash_json

_NOT_SHOWN = frozenset({"step", "account"})


class LoggingSettings(Config):
    """What to show beside `metrics.jsonl`, which stays the truth."""

    tensorboard: bool = False
    """Write the same figures to `tensorboard/`; needs the package tensorboard."""
    wandb: str | None = None
    """Project of Weights & Biases to send the same figures to; needs the package wandb."""
    peak_tflops: float | None = Field(default=None, gt=0)
    """What a device can do, dense, in 10^12 operations a second, for the MFU. None: by the
    device's name where it is known and trains in bf16, else there is no MFU."""


class Mirror(Protocol):
    """Somewhere that figures go."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Show the figures of a step."""

    def close(self) -> None:
        """Nothing follows."""


def require_installed(settings: LoggingSettings) -> None:
    """Refuse mirrors whose packages are missing, before anything is spent.

    Raises:
        ConfigError: A package is not installed.
    """
    asked = {"tensorboard": settings.tensorboard, "wandb": settings.wandb is not None}
    for package, wanted in asked.items():
        if wanted and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"the package {package} is not installed",
                where=f"training.logging.{package}",
                fix=f"pip install {package}, or leave this setting out: metrics.jsonl holds all.",
            )


def open_mirrors(settings: LoggingSettings, out: Path, after_step: int) -> list[Mirror]:
    """The mirrors asked for, to be written from step `after_step` + 1 on."""
    mirrors: list[Mirror] = []
    if settings.tensorboard:
        mirrors.append(_TensorBoard(out / "tensorboard", after_step))
    if settings.wandb is not None:
        mirrors.append(_Wandb(settings.wandb, out))
    return mirrors


def figures_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record of the metrics; those in mappings by `key/name`."""
    return dict(_flat({k: v for k, v in record.items() if k not in _NOT_SHOWN}, ""))


def _flat(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", float(value)


class _TensorBoard:
    def __init__(self, folder: Path, after_step: int) -> None:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        # What an earlier try wrote after the checkpoint is hidden.
        self._writer = writer(log_dir=str(folder), purge_step=after_step + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, project: str, out: Path) -> None:
        wandb = importlib.import_module("wandb")
        place = str(out.resolve())
        # The same folder is the same run: a later try goes on in it.
        self._run = wandb.init(
            project=project, dir=place, name=out.name, id=hash_json(place)[:16], resume="allow"
        )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()
