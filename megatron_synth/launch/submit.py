"""An experiment on a Slurm cluster: its scripts, submitted in order, each job by its number."""

import os
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from megatron_synth.config import DataError, load_config
from megatron_synth.experiments.config import ExperimentConfig
from megatron_synth.experiments.declared import check_layouts, declared_plans
from megatron_synth.experiments.graph import Graph, State
from megatron_synth.experiments.kinds import VERSIONS
from megatron_synth.experiments.run_folder import RunFolder
from megatron_synth.experiments.steps import steps_of
from megatron_synth.launch.profile import Profile
from megatron_synth.launch.scripts import SCRIPTS, render, script_name
from megatron_synth.launch.slurm import Job, find_jobs, submit_script
from megatron_synth.runs import atomic_write, disk_errors

_JOBS, _PROFILE = "jobs.json", "profile.yaml"


class Submitted(BaseModel):
    """The jobs of a run, by step."""

    jobs: dict[str, int] = {}


def load_profile(path: Path) -> Profile:
    """Read a cluster's profile; its templates' folder is relative to the file.

    Raises:
        ConfigError: It is wrong.
    """
    profile = load_config(path, Profile, [])
    if profile.templates is None or profile.templates.is_absolute():
        return profile
    return profile.model_copy(update={"templates": (path.parent / profile.templates).resolve()})


def write_scripts(config: ExperimentConfig, profile: Profile, run: RunFolder) -> Path:
    """Write the experiment, the profile and all scripts into a run folder; submit nothing.

    Neither the data nor the cluster need be here. Gives the folder of the scripts.

    Raises:
        UserError: The experiment or the profile is wrong, or they do not fit each other.
        RunError: The folder cannot be written.
    """
    declared_plans(config)
    check_layouts(config)
    scripts = render(config, Graph(steps_of(config, ""), VERSIONS), profile, run.path)
    folder = run.path / SCRIPTS
    with disk_errors(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
        run.logs.mkdir(exist_ok=True)  # Slurm makes no folder for --output
    run.write_experiment(config)
    scripts.write(folder)
    with atomic_write(folder / _PROFILE) as handle:
        yaml.safe_dump(profile.model_dump(mode="json"), handle, sort_keys=False)
    return folder


def submit_run(run: RunFolder, until: str | None = None) -> dict[str, int]:
    """Submit every step that is neither done nor in the queue; gives the new jobs by step.

    A number is on record before the next script is submitted, so that a broken connection leaves
    nothing unknown.

    Args:
        run: A run folder with scripts.
        until: Submit only this step and what it needs; None for everything.

    Raises:
        ConfigError: There is no such step, or no Slurm here.
        DataError: This is no run folder with scripts, or its corpus is not there.
        RunError: Slurm refuses a script; those before it are submitted and on record.
    """
    folder = run.path / SCRIPTS
    if not (folder / _PROFILE).is_file():
        raise DataError(
            "no scripts here",
            where=run.path,
            fix="Use `megatron-synth run EXPERIMENT.yaml --on PROFILE.yaml`, or `launch render`.",
        )
    with run.lock():
        run.write_source(run.config())
        known = _read(folder)
        live = _live(known)
        new: dict[str, int] = {}
        graph = run.graph() if until is None else run.graph().up_to(until)
        for name, status in graph.resolve(run.store).items():
            if status.state is State.DONE or name in live:
                continue
            parents = [live[p] for p in status.step.inputs.values() if p in live]
            job = submit_script(folder / script_name(name), sorted(set(parents)))
            live[name] = new[name] = job
            known = Submitted(jobs={**known.jobs, name: job})
            with atomic_write(folder / _JOBS) as handle:
                handle.write(known.model_dump_json(indent=2))
            (folder / f"{name}.failures").unlink(missing_ok=True)
    return new


def jobs_of(run: RunFolder) -> dict[str, Job]:
    """The newest job of each step that was submitted, as Slurm has it now.

    Raises:
        ConfigError: Jobs are on record, but there is no Slurm here.
    """
    known = _read(run.path / SCRIPTS).jobs
    found = find_jobs(known.values())
    return {step: found.get(job, Job(job, "FORGOTTEN")) for step, job in known.items()}


def _live(known: Submitted) -> dict[str, int]:
    jobs = find_jobs(known.jobs.values())
    return {step: job for step, job in known.jobs.items() if job in jobs and jobs[job].live}


def _read(folder: Path) -> Submitted:
    path = folder / _JOBS
    if not path.is_file():
        return Submitted()
    try:
        return Submitted.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise DataError(
            "damaged", where=path, fix=f"Remove it, after `squeue --me`: {error}"
        ) from None


def absolute(folder: Path) -> Path:
    """The same path without the detours; symbolic links stay, since nodes may resolve others."""
    return Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow links
