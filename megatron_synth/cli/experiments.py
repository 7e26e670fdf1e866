"""Verbs about experiments and run folders."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_synth.cli.answers import Json, print_json
from megatron_synth.config import ConfigError, load_config, parse_config

app = typer.Typer()

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Overrides of the experiment, such as training.steps=100", show_default=False
    ),
]
Experiment = Annotated[Path, typer.Argument(help="An experiment's YAML", show_default=False)]
Run = Annotated[
    Path, typer.Argument(help="A run folder, such as runs/quickstart", show_default=False)
]


@app.command(epilog="Example: megatron-synth run examples/quickstart.yaml corpus.input=my.jsonl.gz")
def run(
    experiment: Experiment,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; by default runs/NAME", show_default=False)
    ] = None,
    cores: Annotated[
        int | None, typer.Option(min=1, help="CPU cores to keep busy; by default all")
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Run only this step and what it needs", show_default=False)
    ] = None,
    on: Annotated[
        str,
        typer.Option(help="`local`: this machine; else a cluster's profile, see slurm/profiles"),
    ] = "local",
) -> None:
    """Run an experiment, or go on with it; finished steps cost nothing."""
    from megatron_synth.launch.experiment import run_experiment

    config = load_config(experiment, _experiment_config(), overrides or [])
    folder = out or Path("runs") / config.name
    if on != "local":
        if cores:
            raise ConfigError("--cores is for --on local; the profile says what a job takes")
        from megatron_synth.cli.launch import render_run, submit_and_say

        submit_and_say(render_run(config, Path(on), folder), until)
        return
    outcome = run_experiment(config, folder, cores or len(os.sched_getaffinity(0)), until)
    for line in outcome:
        typer.echo(line)


@app.command(epilog="Example: megatron-synth plan examples/sbp_200b.yaml --gpu B200 --mfu 0.4")
def plan(
    experiment: Experiment,
    overrides: Overrides = None,
    gpu: Annotated[str | None, typer.Option(help="H100 by default", show_default=False)] = None,
    mfu: Annotated[
        float | None,
        typer.Option(help="Share of the GPU's peak in training; 0.355 by default"),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Output tokens/s of a GPU in synthesis; 8300 by default")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(help="GPUs of a training step, for its memory", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what every arm will train on and what it will cost, before anything is spent."""
    from megatron_synth.experiments.cost import CostConfig, as_json_costs, cost_table, planned_costs
    from megatron_synth.experiments.declared import declared_plans

    config = load_config(experiment, _experiment_config(), overrides or [])
    given = {"gpu": gpu, "mfu": mfu, "output_tokens_per_second": rate, "ranks": ranks}
    chosen = {name: value for name, value in given.items() if value is not None}
    assumed = parse_config(chosen, CostConfig, where="plan")
    plans = declared_plans(config)
    costs = planned_costs(config, plans, assumed)
    if as_json:
        arms = {arm: p.model_dump(mode="json") for arm, p in plans.items()}
        print_json({"arms": arms, "cost": as_json_costs(costs, assumed)})
        return
    for arm, solved in plans.items():
        typer.echo(f"Arm {arm}\n{solved.table()}\n")
    typer.echo(f"Cost\n{cost_table(costs, assumed)}")


@app.command(epilog="Example: megatron-synth status runs/quickstart")
def status(run: Run, as_json: Json = False) -> None:
    """Show every step of a run: done, running, waiting or failed, and why."""
    from megatron_synth.experiments.run_folder import RunFolder
    from megatron_synth.experiments.status import status_lines, status_of
    from megatron_synth.launch.submit import jobs_of

    folder = RunFolder(run)
    found = status_of(folder)
    jobs = jobs_of(folder)
    if as_json:
        answer: dict[str, Any] = {"steps": [s.model_dump(mode="json") for s in found]}
        if jobs:
            answer["jobs"] = {step: asdict(job) for step, job in jobs.items()}
        print_json(answer)
        return
    for step, line in zip(found, status_lines(found), strict=True):
        job = None if step.state == "done" else jobs.get(step.name)
        slurm = f"  job {job.id}: {job.state} {job.reason}".rstrip() if job else ""
        typer.echo(line + slurm)


@app.command(epilog="Example: megatron-synth logs runs/quickstart train.repeat")
def logs(run: Run, step: Annotated[str, typer.Argument(help="Name of a step")]) -> None:
    """Print what a step said."""
    from megatron_synth.experiments.failure import log_file
    from megatron_synth.experiments.run_folder import RunFolder

    folder = RunFolder(run)
    folder.graph().up_to(step)  # refuses a name that is no step
    path = log_file(folder.logs, step)
    if not path.is_file():
        typer.echo(f"{step} has not been started", err=True)
        return
    with path.open(encoding="utf-8", errors="replace") as handle:
        for line in handle:
            sys.stdout.write(line)


@app.command(epilog="Example: megatron-synth report runs/quickstart")
def report(run: Run) -> None:
    """Write the report of a run, finished or not, and say where it is."""
    from megatron_synth.experiments.collect import write_run_report
    from megatron_synth.experiments.run_folder import RunFolder

    typer.echo(write_run_report(RunFolder(run)))


def _experiment_config() -> Any:
    from megatron_synth.experiments.config import ExperimentConfig

    return ExperimentConfig
