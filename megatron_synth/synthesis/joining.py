"""Somebody else's Ray cluster: joined for the time of one step, and left as it was."""

import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

from megatron_synth.config import ConfigError, RunError
from megatron_synth.synthesis.cluster import ray_environment

_SECONDS_TO_APPEAR = 15.0
"""A file system of several nodes may show a new file late."""
_SECONDS_TO_ANSWER = 10.0
_HEAD = "node:__internal_head__"
_THREADS_BEFORE_JOINING = 1


@dataclass(frozen=True)
class Node:
    """A node of a cluster, and what Ray may count on there."""

    name: str
    is_head: bool
    cpus: float
    gpus: float


def nodes_of(address: str) -> list[Node]:
    """The nodes of the cluster at `address`.

    Raises:
        RunError: No cluster is there, or it cannot be joined.
    """
    with ray_environment(_THREADS_BEFORE_JOINING) as variables, _connected(address, variables):
        return _nodes()


@contextmanager
def joined_ray(address: str, out: Path, engines: int, gpus: float) -> Iterator[bool]:
    """Run the block with the Ray at `address`, which goes on without us afterwards.

    Args:
        address: See `RayConfig.address`.
        out: The step's folder, which every node must see.
        engines: Generation workers.
        gpus: That each of them reserves.

    Yields:
        Whether the head node takes no part.

    Raises:
        ConfigError: The cluster does not suit the step: Ray would wait for ever.
        RunError: No cluster is there, it cannot be joined, or a node does not see `out`.
    """
    nodes = nodes_of(address)
    without_head = _check_nodes(nodes, engines, gpus)
    on_each = -(-engines // len(nodes))
    threads = max(1, int(min(node.cpus for node in nodes if node.cpus)) // on_each)
    with ray_environment(threads) as variables, _connected(address, variables):
        _check_that_all_see(out)
        yield without_head


def _check_nodes(nodes: list[Node], engines: int, gpus: float) -> bool:
    """Whether the head node takes no part: Curator sets up each stage on all nodes, or on all
    but the head, and waits until there is room for it.
    """
    poor = [node for node in nodes if node.cpus < 1 or node.gpus < gpus]
    if any(not node.is_head for node in poor) or len(poor) == len(nodes):
        raise ConfigError(
            f"every node but the head needs a CPU and {gpus:g} GPUs, and "
            f"{', '.join(node.name for node in poor)} has less",
            where="ray.address",
            fix="Stages are set up on every node. Join another cluster, or change "
            "engine.tensor_parallel.",
        )
    cpus = sum(node.cpus for node in nodes)
    if cpus < engines + 1:
        raise ConfigError(
            f"{engines} engines and the stages after them need {engines + 1} CPUs, and the "
            f"cluster has {cpus:g}",
            where="ray.address",
            fix="Lower synthesis.workers.",
        )
    return bool(poor)


@contextmanager
def _connected(address: str, variables: dict[str, str]) -> Iterator[None]:
    """Be a driver of the cluster; its workers get `variables`."""
    import ray

    try:
        try:
            _knock(address)
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": variables},
            )
        except Exception as error:
            raise RunError(
                f"cannot join the Ray cluster: {' '.join(str(error).split())}",
                where=address,
                fix="Look with `ray status` whether it runs, with the same versions of Python and "
                "Ray; this command must run on one of its nodes.",
            ) from error
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Ray would knock for minutes where nobody is."""
    host, colon, port = address.rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), _SECONDS_TO_ANSWER).close()


def _nodes() -> list[Node]:
    import ray

    return [
        Node(
            name=f"{node['NodeName']} ({node['NodeID'][:8]})",
            is_head=_HEAD in node["Resources"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _check_that_all_see(out: Path) -> None:
    """Every node reads what is written here, and what it writes is read here."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    word = uuid.uuid4().hex
    folder = Path(tempfile.mkdtemp(prefix=".seen-", dir=out))
    try:
        (folder / "here").write_text(word, encoding="utf-8")
        answer: Any = ray.remote(num_cpus=0)(_answer)
        asked = {}
        for node in ray.nodes():
            if node["Alive"]:
                place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                asked[node["NodeID"]] = (
                    node["NodeName"],
                    answer.options(scheduling_strategy=place).remote(folder, node["NodeID"], word),
                )
        blind = []
        for identity, (name, result) in asked.items():
            try:
                seen = ray.get(result) and _appears(folder / identity, word)
            except Exception as error:
                raise RunError(
                    f"node {name} cannot work: {' '.join(str(error).split())[-300:]}",
                    where=f"{name} ({identity[:8]})",
                    fix="The package must be installed there, in the Python that started Ray.",
                ) from error
            if not seen:
                blind.append(f"{name} ({identity[:8]})")
    finally:
        rmtree(folder, ignore_errors=True)
    if blind:
        raise RunError(
            f"not every node of the cluster sees this folder: {', '.join(blind)}",
            where=out,
            fix="Give an --out on a file system that all of them mount under the same path.",
        )


def _answer(folder: Path, identity: str, word: str) -> bool:
    """On a node: whether what was written there is seen here; if so, answer."""
    if not _appears(folder / "here", word):
        return False
    (folder / identity).write_text(word, encoding="utf-8")
    return True


def _appears(path: Path, word: str) -> bool:
    end = time.monotonic() + _SECONDS_TO_APPEAR
    while not path.is_file() or path.read_text(encoding="utf-8") != word:
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
