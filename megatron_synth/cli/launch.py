"""Verbs about clusters: an experiment's steps as sbatch scripts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_synth.cli.experiments import Experiment, Overrides, Run
from megatron_synth.config import load_config

if TYPE_CHECKING:
    from megatron_synth.experiments.run_folder import RunFolder

app = typer.Typer(no_args_is_help=True, help="An experiment's steps as Slurm jobs.")

OnProfile = Annotated[
    Path, typer.Option("--on", help="A cluster's profile, see slurm/profiles", show_default=False)
]


@app.command(
    epilog="Example: megatron-synth launch render examples/sbp_200b.yaml "
    "--on slurm/profiles/h100.yaml --out /lustre/me/runs/sbp_200b"
)
def render(
    experiment: Experiment,
    on: OnProfile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; by default runs/NAME", show_default=False)
    ] = None,
) -> None:
    """Write the sbatch script of every step, to be read, edited and submitted by hand.

    Needs neither the data nor Slurm here.
    """
    from megatron_synth.experiments.config import ExperimentConfig

    config = load_config(experiment, ExperimentConfig, overrides or [])
    run = render_run(config, on, out or Path("runs") / config.name)
    typer.echo(f"Scripts: {run.path}/slurm\nSubmit them: megatron-synth launch submit {run.path}")


@app.command(epilog="Example: megatron-synth launch submit /lustre/me/runs/sbp_200b")
def submit(
    run: Run,
    until: Annotated[
        str | None, typer.Option(help="Submit only this step and what it needs", show_default=False)
    ] = None,
) -> None:
    """Submit every step of a run that is neither done nor in the queue, in order."""
    from megatron_synth.experiments.run_folder import RunFolder
    from megatron_synth.launch.submit import absolute

    submit_and_say(RunFolder(absolute(run)), until)


def render_run(config: Any, profile: Path, folder: Path) -> "RunFolder":
    """Write the scripts of an experiment into its run folder."""
    from megatron_synth.experiments.run_folder import RunFolder
    from megatron_synth.launch.submit import absolute, load_profile, write_scripts

    run = RunFolder(absolute(folder))
    write_scripts(config, load_profile(profile), run)
    return run


def submit_and_say(run: "RunFolder", until: str | None = None) -> None:
    """Submit what is to do, and say which jobs these are."""
    from megatron_synth.launch.submit import submit_run

    jobs = submit_run(run, until)
    for step, job in jobs.items():
        typer.echo(f"{job:10}  {step}")
    if not jobs:
        typer.echo("Nothing to submit: every step is done or in the queue.")
    typer.echo(f"How it stands: megatron-synth status {run.path}")
