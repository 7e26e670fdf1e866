"""How far a run is, for people and for programs."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel

from megatron_synth.experiments.failure import failure_file, read_failure
from megatron_synth.experiments.graph import State, Status
from megatron_synth.experiments.run_folder import RunFolder
from megatron_synth.runs import ProgressState, read_progress


class StepStatus(BaseModel):
    """One step of a run."""

    name: str
    state: Literal["done", "running", "stopped", "failed", "ready", "waiting"]
    """`stopped`: begun, not running now; the next run goes on with it."""
    seconds: float | None = None
    folder: str | None = None
    progress: ProgressState | None = None
    failure: str | None = None


def status_of(run: RunFolder, resolved: Mapping[str, Status] | None = None) -> list[StepStatus]:
    """Every step of the run, in order; `resolved` is the run's graph, where it is at hand."""
    statuses = run.graph().resolve(run.store) if resolved is None else resolved
    return [_one(run, name, status) for name, status in statuses.items()]


def status_lines(steps: list[StepStatus]) -> list[str]:
    """The run as a table for a terminal."""
    done = sum(s.state == "done" for s in steps)
    lines = [f"{done} of {len(steps)} steps done"]
    for step in steps:
        detail = f"{step.seconds:8.1f} s" if step.seconds is not None else ""
        if step.failure:
            detail = step.failure.splitlines()[0]
        elif step.state in ("running", "stopped") and step.progress:
            share = step.progress.share
            detail = step.progress.phase + (f", {share:.0%}" if share is not None else "")
        lines.append(f"  {step.state:8} {step.name:22} {detail}".rstrip())
    return lines


def _one(run: RunFolder, name: str, status: Status) -> StepStatus:
    if status.manifest is not None:
        return StepStatus(
            name=name,
            state="done",
            seconds=status.manifest.seconds,
            folder=status.manifest.folder.name,
        )
    if status.state is State.WAITING or status.key is None:
        return StepStatus(name=name, state="waiting")
    failure = read_failure(failure_file(run.logs, name))
    partial = run.store.partial(name, status.key)
    if run.store.is_locked(name, status.key):
        return StepStatus(name=name, state="running", progress=read_progress(partial))
    if failure is not None and failure.key == status.key:
        return StepStatus(name=name, state="failed", failure=failure.what)
    if partial.is_dir():
        return StepStatus(name=name, state="stopped", progress=read_progress(partial))
    return StepStatus(name=name, state="ready")
