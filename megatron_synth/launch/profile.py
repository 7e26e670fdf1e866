"""A cluster's profile: what its jobs ask for, and where each step's software is."""

import fnmatch
import re
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from megatron_synth.config import Config, ConfigError
from megatron_synth.experiments.graph import Environment, Step

_TIME = re.compile(r"(\d+-)?\d+(:\d{2}){0,2}|UNLIMITED")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _one_line(value: str) -> str:
    if not value or not value.isprintable() or '"' in value:
        raise ValueError(f"{value!r}: one line without double quotes, please; it goes to sbatch")
    return value


def _time(value: str) -> str:
    if not _TIME.fullmatch(value):
        raise ValueError(f"{value!r} is no time of Slurm's, such as 24:00:00 or 2-12:00:00")
    return value


Line = Annotated[str, AfterValidator(_one_line)]
Time = Annotated[str, AfterValidator(_time)]


class SoftwareConfig(Config):
    """How the software of one environment comes to be on a node."""

    modules: tuple[Line, ...] = ()
    """Loaded with `module load`, in order."""
    venv: Line | None = None
    """Folder of a virtual environment, the same path on every node."""
    container: Line | None = None
    """An image: a squashfs file or a registry's name (pyxis), or a SIF file (Apptainer)."""
    runtime: Literal["pyxis", "apptainer"] = "pyxis"
    """What starts the container."""
    mounts: tuple[Line, ...] = ()
    """Host folders that the container sees, `SOURCE:TARGET`; the run folder is always mounted."""
    python: Line = "python"
    """The interpreter, found after everything above."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.venv and self.container:
            raise ValueError("give venv or container; a container brings its own packages")
        return self


class ResourcesConfig(Config):
    """What one job asks for; what is left out comes from the environment's entry or the profile."""

    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    time: Time = "24:00:00"
    """Limit of one start; training is requeued until its budget is trained."""
    nodes: int = Field(default=1, ge=1)
    gpus_per_node: int | None = Field(default=None, ge=0)
    """The profile's where the step takes GPUs, else 0."""
    ranks_per_node: int | None = Field(default=None, ge=1)
    """Of a training step: one a GPU; without GPUs what one copy of the model needs."""
    cpus_per_node: int | None = Field(default=None, ge=1)
    """The profile's by default."""
    memory_per_node: Line | None = None
    """Such as 900G; Slurm's default where it is left out."""
    exclusive: bool = False
    """Nobody else's job on the nodes."""


class Profile(Config):
    """A cluster: defaults of every job, software by environment, resources by step."""

    name: Line
    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    reservation: Line | None = None
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs of a node; 0: a cluster without."""
    gpu_type: Line | None = None
    """As `sinfo -o %G` names it, such as h100."""
    cpus_per_node: int = Field(ge=1)
    environments: dict[Environment, SoftwareConfig] = Field(min_length=1)
    """Software of `train`, `generate`, `judge` and `base`; one that is left out is `base`'s."""
    resources: dict[str, ResourcesConfig] = {}
    """By environment (`train`), then by step, wildcards allowed (`train.sbp`, `pack.*`): later
    entries win, setting by setting."""
    variables: dict[str, str] = {}
    """Exported in every job: the network's settings, caches."""
    scratch: Line | None = None
    """Folder for temporary files on the nodes (TMPDIR); may hold variables of the job's."""
    offline: bool = True
    """Keep the Hugging Face hub off in jobs: compute nodes rarely reach it."""
    stop_before: int = Field(default=300, ge=30)
    """Seconds before the time limit at which a step is asked to save and leave."""
    max_restarts: int = Field(default=100, ge=0)
    """Starts after the first one, for whatever reason: time limits, preemptions, lost nodes."""
    max_failures: int = Field(default=3, ge=0)
    """Failures of the step itself that are tried again; a user's mistake never is."""
    options: dict[str, str | int | bool] = {}
    """Further options of sbatch by their long names; `true` for one without a value."""
    templates: Path | None = None
    """Folder with scripts of your own in place of ours; relative to the profile's file."""

    @model_validator(mode="after")
    def _has_base(self) -> Self:
        if "base" not in self.environments:
            raise ValueError("environments: set at least `base`")
        return self

    @model_validator(mode="after")
    def _exportable(self) -> Self:
        wrong = [name for name in self.variables if not _VARIABLE.fullmatch(name)]
        if wrong:
            raise ValueError(f"variables: {wrong[0]!r} is no name of a variable")
        for name, value in self.options.items():
            if not re.fullmatch(r"[a-z][a-z-]*", name):
                raise ValueError(f"options: {name!r} is no long option of sbatch's")
            if isinstance(value, str):
                _one_line(value)
        return self

    def software(self, environment: Environment) -> SoftwareConfig:
        """What a step of this environment runs with."""
        return self.environments.get(environment, self.environments["base"])

    def job(self, step: Step, environment: Environment) -> ResourcesConfig:
        """What the job of `step` asks for, everything filled in.

        Raises:
            ConfigError: It wants more GPUs of a node than there are.
        """
        set_values: dict[str, object] = {}
        for pattern, resources in self.resources.items():
            if pattern == environment or fnmatch.fnmatchcase(step.name, pattern):
                set_values |= resources.model_dump(include=resources.model_fields_set)
        found = ResourcesConfig.model_validate(set_values)
        gpus = found.gpus_per_node
        if gpus is None:
            gpus = self.gpus_per_node if step.gpu else 0
        if gpus > self.gpus_per_node:
            raise ConfigError(
                f"asks for {gpus} GPUs a node, but a node has {self.gpus_per_node}",
                where=f"profile {self.name}, step {step.name}",
                fix="Lower resources' gpus_per_node, or ask for more nodes.",
            )
        return found.model_copy(
            update={
                "gpus_per_node": gpus,
                "ranks_per_node": found.ranks_per_node or gpus or step.ranks,
                "cpus_per_node": found.cpus_per_node or self.cpus_per_node,
                **{
                    name: getattr(found, name) or getattr(self, name)
                    for name in ("partition", "account", "qos", "constraint")
                },
            }
        )

    def unmatched(self, steps: dict[str, Step]) -> list[str]:
        """Entries of `resources` that name no environment and no step: probably misspelt."""
        return [
            pattern
            for pattern in self.resources
            if pattern not in get_args(Environment) and not fnmatch.filter(steps, pattern)
        ]
