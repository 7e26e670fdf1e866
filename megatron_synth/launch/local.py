"""Run a graph on this machine: side by side as far as the cores carry."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import psutil

from megatron_synth.config import RunError
from megatron_synth.experiments.failure import STOPPED, failure_file, log_file, read_failure
from megatron_synth.experiments.graph import Graph, State, Status, Step
from megatron_synth.runs import Manifest, Store, disk_errors
from megatron_synth.runs.supervise import adopt_orphans, end_children

_POLL_SECONDS = 0.2

Command = Callable[[Step], Sequence[str]]
"""Gives the command line that runs a step."""


class Display(Protocol):
    """Shows a run to a person."""

    def show(self, statuses: dict[str, Status], running: Sequence["Running"]) -> None:
        """Called several times a second."""

    def finished(self, manifest: Manifest) -> None:
        """A step is done."""


@dataclass
class Running:
    """A step whose process runs."""

    step: Step
    work: Path
    """The folder that it works in; holds its progress."""
    log: Path
    process: subprocess.Popen[bytes]
    handle: IO[bytes]
    started: float = field(default_factory=time.monotonic)


def run_graph(
    graph: Graph,
    store: Store,
    logs: Path,
    command: Command,
    display: Display,
    cores: int,
    gpus: int = 0,
) -> dict[str, Status]:
    """Run every step that is not done yet; return where all of them stand at the end.

    Args:
        graph: What to run.
        store: Where the products go.
        logs: Folder for one log file a step.
        command: Gives the command line that runs a step; it must commit to `store`.
        display: Shows progress.
        cores: How many cores the running steps may keep busy together.
        gpus: GPUs of this machine; where there are any, steps that take one run one at a time.

    Raises:
        RunError: A step failed; the others were stopped and can be gone on with.
        KeyboardInterrupt: Ctrl-C; likewise.
    """
    with disk_errors(logs):
        logs.mkdir(parents=True, exist_ok=True)
    adopt_orphans()  # of a supervisor that is itself killed
    ours = {child.pid for child in psutil.Process().children()}
    running: dict[str, Running] = {}
    statuses = graph.resolve(store)
    try:
        while True:
            for name in [n for n, r in running.items() if r.process.poll() is not None]:
                ended = running.pop(name)
                end_children(keep=ours | {r.process.pid for r in running.values()})
                _conclude(ended)
                statuses = graph.resolve(store)
                manifest = statuses[name].manifest
                if manifest is None:
                    raise RunError(
                        "ended without a product", where=name, fix=f"See {log_file(logs, name)}."
                    )
                display.finished(manifest)
            _start_ready(statuses, running, store, logs, command, cores, gpus)
            display.show(statuses, list(running.values()))
            if not running:
                return statuses
            time.sleep(_POLL_SECONDS)
    finally:
        _stop(running.values())
        end_children(keep=ours)


def count_gpus() -> int:
    """NVIDIA GPUs that a step would see; 0 where there is no driver."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([d for d in visible.split(",") if d.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def _start_ready(
    statuses: dict[str, Status],
    running: dict[str, Running],
    store: Store,
    logs: Path,
    command: Command,
    cores: int,
    gpus: int,
) -> None:
    free = cores - sum(r.step.cores for r in running.values())
    for name, status in statuses.items():
        if status.state is not State.READY or name in running or status.key is None:
            continue
        need = min(status.step.cores, cores)  # a step that wants more than there is runs alone
        if need > free:
            continue
        if gpus and status.step.gpu and any(r.step.gpu for r in running.values()):
            continue
        free -= need
        running[name] = _start(status.step, store.partial(name, status.key), logs, command)


def _start(step: Step, work: Path, logs: Path, command: Command) -> Running:
    log = log_file(logs, step.name)
    failure_file(logs, step.name).unlink(missing_ok=True)
    handle = log.open("ab")
    process = subprocess.Popen(
        [sys.executable, "-m", "megatron_synth.runs.supervise", *command(step)],
        stdin=subprocess.PIPE,  # closed by our death: then the supervisor ends the step
        stdout=handle,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on
        env={**os.environ, "OMP_NUM_THREADS": str(max(1, step.cores // step.ranks))},
    )
    return Running(step, work, log, process, handle)


def _conclude(running: Running) -> None:
    _close(running)
    status = running.process.returncode
    if status == 0:
        return
    failure = read_failure(failure_file(running.log.parent, running.step.name))
    if failure is None:
        raise RunError(
            f"ended by {_describe(status)}",
            where=f"step {running.step.name}",
            fix=f"Its log: {running.log}. Run the same command again to go on.",
        )
    raise failure.error(running.step.name, running.log)


def _describe(status: int) -> str:
    if status == STOPPED:
        return "a signal from outside; it saved what it had"
    if status < 0 or status > 128:  # the supervisor was killed; its command was
        try:
            name = signal.Signals(-status if status < 0 else status - 128).name
        except ValueError:
            return f"exit status {status}"
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"signal {name}{hint}"
    return f"exit status {status}"


def _stop(running: Iterable[Running]) -> None:
    stopping = list(running)
    for r in stopping:
        r.process.terminate()
    for r in stopping:
        r.process.wait()
        _close(r)


def _close(running: Running) -> None:
    running.handle.close()
    if running.process.stdin is not None:
        running.process.stdin.close()
