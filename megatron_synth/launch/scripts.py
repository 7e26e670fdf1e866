"""The steps of an experiment as sbatch scripts that a person can read, edit and submit."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2

from megatron_synth.config import ConfigError
from megatron_synth.experiments.config import ExperimentConfig
from megatron_synth.experiments.graph import Graph, Step
from megatron_synth.experiments.kinds import KINDS
from megatron_synth.launch.profile import Profile, ResourcesConfig, SoftwareConfig
from megatron_synth.runs import atomic_write, disk_errors
from megatron_synth.training import TrainConfig

OURS = Path(__file__).parent / "templates"
"""Templates that a profile's own replace, file by file."""
SCRIPTS = "slurm"
"""Folder of the scripts in a run folder."""
_STEP, _SUBMIT = "step.sbatch", "submit.sh"


@dataclass(frozen=True)
class Scripts:
    """The scripts of an experiment.

    Attributes:
        steps: Text of each step's script, by step, in an order in which they can be submitted.
        submit: Text of the script that submits them all.
    """

    steps: Mapping[str, str]
    submit: str

    def write(self, folder: Path) -> None:
        """Write `STEP.sbatch` for every step, and `submit.sh`.

        Raises:
            RunError: The folder cannot be written.
        """
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in {
                **{script_name(step): text for step, text in self.steps.items()},
                _SUBMIT: self.submit,
            }.items():
                with atomic_write(folder / name) as handle:
                    handle.write(text)
                (folder / name).chmod(0o755)


def script_name(step: str) -> str:
    """File of a step's script."""
    return f"{step}.sbatch"


def render(config: ExperimentConfig, graph: Graph, profile: Profile, run: Path) -> Scripts:
    """Make the scripts; nothing is read but the config, so data and cluster may be elsewhere.

    Args:
        config: The experiment.
        graph: Its steps.
        profile: The cluster.
        run: The run folder, a path that is the same on every node.

    Raises:
        ConfigError: The profile does not fit the experiment: a step that is not there, ranks or a
            batch that cannot be divided, a path that sbatch cannot take.
    """
    _check(profile, graph, run)
    environment = _templates(profile.templates)
    scripts = {}
    for step in graph:
        resources = profile.job(step, KINDS[step.kind].environment)
        if KINDS[step.kind].distributed:
            _check_ranks(config, step, resources)
        scripts[step.name] = environment.get_template(_STEP).render(
            _values(config, step, resources, profile, run)
        )
    submit = environment.get_template(_SUBMIT).render(
        experiment=config.name,
        run=str(run),
        python=shlex.quote(profile.software("base").python),
        steps=[
            {"name": step.name, "file": script_name(step.name), "after": _after(step)}
            for step in graph
        ],
    )
    return Scripts(scripts, submit)


def _values(
    config: ExperimentConfig, step: Step, resources: ResourcesConfig, profile: Profile, run: Path
) -> dict[str, object]:
    kind = KINDS[step.kind]
    software = profile.software(kind.environment)
    offline = {"HF_HUB_OFFLINE": "1"} if profile.offline else {}
    ranks = resources.ranks_per_node if kind.distributed else 1
    assert ranks is not None
    assert resources.cpus_per_node is not None
    return {
        "experiment": config.name,
        "step": step.name,
        "run": str(run),
        "options": _options(config, step, resources, profile, run),
        "environment": kind.environment,
        "software": software,
        "variables": {**offline, **profile.variables},
        "scratch": profile.scratch,
        "stop_before": profile.stop_before,
        "max_restarts": profile.max_restarts,
        "max_failures": profile.max_failures,
        "distributed": kind.distributed,
        "resources": resources,
        "threads": max(1, resources.cpus_per_node // ranks) if resources.gpus_per_node else 1,
        "srun_container": _srun_container(software, run),
        "worker": _worker(software, resources, run, kind.distributed),
    }


def _options(
    config: ExperimentConfig, step: Step, resources: ResourcesConfig, profile: Profile, run: Path
) -> list[str]:
    """What sbatch reads at the top of a script; values with a blank stand in double quotes."""
    gpus = resources.gpus_per_node
    kind = f"{profile.gpu_type}:" if profile.gpu_type else ""
    values: dict[str, object] = {
        "job-name": f"{config.name}.{step.name}",
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "reservation": profile.reservation,
        "time": resources.time,
        "nodes": resources.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": resources.cpus_per_node,
        "gpus-per-node": f"{kind}{gpus}" if gpus else None,
        "mem": resources.memory_per_node,
        "exclusive": resources.exclusive,
        "output": f"{run}/logs/{step.name}.log",
        "open-mode": "append",
        "signal": f"B:USR1@{profile.stop_before}",
        "requeue": True,
        **profile.options,
    }
    lines = []
    for name, value in values.items():
        if value is None or value is False:
            continue
        text = f'"{value}"' if " " in str(value) else value
        lines.append(name if value is True else f"{name}={text}")
    return lines


def _worker(
    software: SoftwareConfig, resources: ResourcesConfig, run: Path, distributed: bool
) -> str:
    """The command of one node, inside single quotes: variables are the job's."""
    python = shlex.quote(software.python)
    module = 'megatron_synth.experiments.worker "$RUN" "$STEP"'
    if not distributed:
        command = f"{python} -m {module}"
    else:
        command = (
            f"{python} -m torch.distributed.run --nnodes={resources.nodes} "
            f'--node-rank="$SLURM_NODEID" --nproc-per-node={resources.ranks_per_node} '
            f'--master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" -m {module}'
        )
    if software.container and software.runtime == "apptainer":
        mounts = "".join(f"--bind {shlex.quote(m)} " for m in _mounts(software, run))
        command = f"apptainer exec --nv {mounts}{shlex.quote(software.container)} {command}"
    return command.replace("'", "'\\''")


def _srun_container(software: SoftwareConfig, run: Path) -> str:
    if not software.container or software.runtime != "pyxis":
        return ""
    mounts = shlex.quote(",".join(_mounts(software, run)))
    image = shlex.quote(software.container)
    return f"--container-image={image} --container-mounts={mounts} --no-container-mount-home "


def _mounts(software: SoftwareConfig, run: Path) -> list[str]:
    return [f"{run}:{run}", *software.mounts]


def _after(step: Step) -> str:
    if not step.inputs:
        return ""
    ids = ":".join(f'"${{job[{name}]}}"' for name in dict.fromkeys(step.inputs.values()))
    return f" --dependency=afterok:{ids} --kill-on-invalid-dep=yes"


def _check(profile: Profile, graph: Graph, run: Path) -> None:
    if unknown := profile.unmatched(graph.steps):
        raise ConfigError(
            f"resources: {unknown[0]!r} names no step and no environment",
            where=f"profile {profile.name}",
            fix=f"Steps: {', '.join(graph.steps)}.",
        )
    if not run.is_absolute() or not str(run).isprintable() or set(str(run)) & set('%"\\ '):
        raise ConfigError(
            "the run folder must be an absolute path without blanks, quotes, backslashes and "
            "percent signs: sbatch reads it in --output",
            where=run,
        )


def _check_ranks(config: ExperimentConfig, step: Step, resources: ResourcesConfig) -> None:
    """The ranks asked for hold whole copies of the model and share the batch evenly."""
    assert resources.ranks_per_node is not None
    ranks = resources.nodes * resources.ranks_per_node
    settings = {"train": config.training, "tune_synthesizer": config.synthesizer}[step.kind]
    assert isinstance(settings, TrainConfig)
    where = f"step {step.name} on {ranks} ranks"
    if ranks % step.ranks:
        raise ConfigError(
            f"{ranks} ranks are no multiple of the {step.ranks} that one copy of the model takes",
            where=where,
            fix="Change resources' nodes or ranks_per_node in the profile.",
        )
    try:
        settings.micro_batches(ranks)
    except ConfigError as error:
        raise ConfigError(error.what, where=where, fix=error.fix) from error


@cache
def _templates(own: Path | None) -> jinja2.Environment:
    folders = [OURS] if own is None else [own, OURS]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # bash, not HTML: every value is quoted by `quote`
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    environment.filters["in_double_quotes"] = _in_double_quotes
    return environment


def _in_double_quotes(value: str) -> str:
    """Keep variables alive, and nothing else that a shell would act on."""
    return value.replace("\\", "\\\\").replace("`", "\\`").replace("$(", "\\$(")
