"""The verb `train`: a run from a file, in one process or under torchrun."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_synth.cli.answers import Json, print_json
from megatron_synth.config import load_config
from megatron_synth.runs.atomic import disk_errors

if TYPE_CHECKING:
    from megatron_synth.runs import Progress

EXAMPLE = (
    "Example: torchrun --nproc-per-node 8 -m megatron_synth.cli train train.yaml "
    "training.schedule.peak=6e-4 --out runs/repeat"
)


def train(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG", help="A training run's YAML (docs/training.md)", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for checkpoints and metrics.jsonl", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings, such as training.steps=100", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a model on a plan; the same command goes on where an earlier one ended.

    Exit status 75: stopped by a signal, the clock or the watchdog, and can go on.
    """
    from megatron_synth.training.job import TrainJob

    job = load_config(file, TrainJob, overrides or [])
    from megatron_synth.training.running import run_job

    with _on_first_rank(out) as progress:
        result = run_job(job, out, progress, where=str(file))
    if not _is_first_rank():
        return
    answer: dict[str, Any] = dataclasses.asdict(result)
    answer["checkpoint"] = str(result.checkpoint)
    answer["best"] = None if result.best is None else str(result.best)
    if as_json:
        print_json(answer)
        return
    losses = [f"loss {result.loss:.4f}", *(f"{k} {v:.4f}" for k, v in result.validation.items())]
    ending = ", saturated" if result.saturated else ""
    typer.echo(
        f"{result.checkpoint}: {result.steps:,} steps, {result.tokens:,} tokens{ending}; "
        f"{', '.join(losses)}; {result.tokens_per_second:,.0f} tokens/s"
    )


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def _on_first_rank(out: Path) -> Iterator["Progress"]:
    """Progress is shown, and the folder held, by rank 0 alone."""
    from megatron_synth.runs import Progress, exclusive, shown_progress

    if not _is_first_rank():
        yield Progress()
        return
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with exclusive(out / ".lock", f"the run in {out}"), shown_progress() as progress:
        yield progress
