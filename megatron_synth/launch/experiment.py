"""Run a whole experiment on this machine and write its report."""

import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from megatron_synth.config import ConfigError, MegatronSynthError
from megatron_synth.experiments.collect import write_run_report
from megatron_synth.experiments.config import ExperimentConfig
from megatron_synth.experiments.declared import check_layouts, declared_plans
from megatron_synth.experiments.graph import Graph, State, Step
from megatron_synth.experiments.kinds import VERSIONS
from megatron_synth.experiments.run_folder import RunFolder
from megatron_synth.experiments.source import fingerprint
from megatron_synth.experiments.steps import steps_of
from megatron_synth.launch.display import LineDisplay, LiveDisplay
from megatron_synth.launch.local import Display, count_gpus, run_graph
from megatron_synth.runs import format_seconds, get_logger

_log = get_logger(__name__)


def run_experiment(
    config: ExperimentConfig, folder: Path, cores: int, until: str | None = None
) -> list[str]:
    """Run, or go on with, `config` in `folder`; finished steps are not done again.

    Args:
        config: The experiment.
        folder: The run folder.
        cores: CPU cores to keep busy.
        until: Run only this step and what it needs; None for everything.

    Returns:
        Lines for the person who started it: what was done, and where the report is.

    Raises:
        UserError: The config or the input is wrong; nothing was started.
        RunError: A step failed; what was finished is kept.
    """
    declared_plans(config)  # a blend that cannot be met is refused before anything is spent
    check_layouts(config)
    fingerprint(config.corpus.input)  # and so is an input that is not there
    run = RunFolder(folder)
    if until is not None:
        Graph(steps_of(config, ""), VERSIONS).up_to(until)  # a wrong name leaves no folder behind
    with run.lock():
        return _run_locked(run, config, cores, until)


def _run_locked(
    run: RunFolder, config: ExperimentConfig, cores: int, until: str | None
) -> list[str]:
    run.write_config(config)
    graph = run.graph() if until is None else run.graph().up_to(until)
    before = graph.resolve(run.store)
    to_do = sum(s.state is not State.DONE for s in before.values())
    if to_do == 0:
        write_run_report(run)
        return [
            f"Nothing to do: all {len(graph)} steps of {run.path} are done.",
            f"Report: {run.report.resolve()}",
        ]
    gpus = count_gpus()
    check_gpus((s.step for s in before.values() if s.state is not State.DONE), gpus)
    started = time.monotonic()
    with ExitStack() as stack:
        display: Display = LineDisplay(sys.stderr)
        if sys.stderr.isatty():
            display = stack.enter_context(LiveDisplay())
        try:
            run_graph(
                graph,
                run.store,
                run.logs,
                lambda step: command(run, step),
                display,
                cores,
                gpus=gpus,
            )
        except (MegatronSynthError, KeyboardInterrupt):
            _report_unfinished(run)
            raise
    write_run_report(run)
    took = format_seconds(time.monotonic() - started)
    return [f"Done: {to_do} steps in {took}.", f"Report: {run.report.resolve()}"]


def check_gpus(steps: Iterable[Step], gpus: int) -> None:
    """Refuse steps with more ranks than there are GPUs; without any, ranks share the CPU.

    Raises:
        ConfigError: A step needs more.
    """
    for step in steps:
        if gpus and step.gpu and step.ranks > gpus:
            raise ConfigError(
                f"needs {step.ranks} ranks, one on each GPU, but there are {gpus} GPUs here",
                where=f"step {step.name}",
                fix="Lower tensor_parallel, pipeline_parallel or expert_parallel of its training.",
            )


def command(run: RunFolder, step: Step) -> Sequence[str]:
    """The command line that works on `step`: one process, or torchrun with one a rank."""
    worker = ["-m", "megatron_synth.experiments.worker", str(run.path.resolve()), step.name]
    if step.ranks == 1:
        return [sys.executable, *worker]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",  # it takes a port and keeps it, whatever others or MASTER_PORT ask for
        f"--nproc-per-node={step.ranks}",
        *worker,
    ]


def _report_unfinished(run: RunFolder) -> None:
    """A report of what there is; a fault in it must not hide why the run stopped."""
    try:
        write_run_report(run)
    except Exception:  # noqa: BLE001 - the run's own error is on its way to the user
        _log.exception("could not write a report of the unfinished run")
