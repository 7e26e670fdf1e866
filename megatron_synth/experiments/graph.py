"""The graph of an experiment's steps, and how far a store has got with it."""

import difflib
import enum
import graphlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_synth.config import ConfigError
from megatron_synth.runs import Manifest, Store

Environment = Literal["train", "generate", "judge", "base"]
"""Software that a step runs with: on one machine all are the same, on a cluster rarely."""


@dataclass(frozen=True)
class Step:
    """One product of an experiment.

    Attributes:
        name: Unique in its graph; part of the product's folder name.
        kind: What is done; a key of the registry of kinds.
        config: Everything beside the inputs that determines the product; JSON-able.
        inputs: Name of the step that makes each input, by role.
        settings: How to work on it (concurrency, memory, how often to save): not part of its
            address, so that they can be changed in the middle.
        ranks: Processes that work on it together (torchrun, if more than one).
        cores: CPU cores that it keeps busy.
        gpu: Whether it takes a GPU where there is one.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    ranks: int = 1
    cores: int = 1
    gpu: bool = False


class State(enum.Enum):
    """How far a step is."""

    DONE = "done"
    READY = "ready"
    """All inputs are there, so its address is known."""
    WAITING = "waiting"
    """An input is not made yet; its address is not known."""


@dataclass(frozen=True)
class Status:
    """A step as a store has it: its key is known once all of its inputs are done."""

    step: Step
    state: State
    key: str | None = None
    manifest: Manifest | None = None


class Graph:
    """Steps in an order in which they can be run.

    Raises:
        ConfigError: Two steps share a name, an input is no step, or steps wait for each other.
    """

    def __init__(self, steps: Iterable[Step], versions: Mapping[str, int]) -> None:
        by_name: dict[str, Step] = {}
        for step in steps:
            if step.name in by_name:
                raise ConfigError("two steps have this name", where=step.name)
            by_name[step.name] = step
        for step in by_name.values():
            for role, name in step.inputs.items():
                if name not in by_name:
                    near = difflib.get_close_matches(name, by_name, n=1)
                    raise ConfigError(
                        f"its input {role!r} comes from {name!r}, which is no step",
                        where=step.name,
                        fix=f"Did you mean {near[0]!r}?" if near else None,
                    )
        sorter = graphlib.TopologicalSorter({s.name: s.inputs.values() for s in by_name.values()})
        try:
            order = list(sorter.static_order())
        except graphlib.CycleError as error:
            raise ConfigError(f"steps wait for each other: {' -> '.join(error.args[1])}") from None
        self.steps = {name: by_name[name] for name in order}
        self._versions = versions

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps.values())

    def __len__(self) -> int:
        return len(self.steps)

    def up_to(self, name: str) -> "Graph":
        """The part of the graph that `name` needs, and `name` itself.

        Raises:
            ConfigError: There is no such step.
        """
        if name not in self.steps:
            near = difflib.get_close_matches(name, self.steps, n=1, cutoff=0.3)
            raise ConfigError(
                f"no step {name!r}",
                fix=f"Did you mean {near[0]!r}?" if near else f"Steps: {', '.join(self.steps)}.",
            )
        needed, found = [name], {name}
        while needed:
            for parent in self.steps[needed.pop()].inputs.values():
                if parent not in found:
                    found.add(parent)
                    needed.append(parent)
        return Graph((s for s in self if s.name in found), self._versions)

    def resolve(self, store: Store) -> dict[str, Status]:
        """Where every step stands in `store`, in order."""
        found: dict[str, Status] = {}
        for step in self:
            parents = {role: found[name].manifest for role, name in step.inputs.items()}
            manifests = {role: parent for role, parent in parents.items() if parent is not None}
            if len(manifests) < len(parents):
                found[step.name] = Status(step, State.WAITING)
                continue
            key = store.key(step.kind, self._versions[step.kind], step.config, manifests)
            manifest = store.find(step.name, key)
            state = State.DONE if manifest else State.READY
            found[step.name] = Status(step, state, key, manifest)
        return found
