"""Which nodes of a cluster take part, and what cannot run there."""

import pytest

from megatron_synth.config import ConfigError, RunError
from megatron_synth.synthesis.joining import Node, _check_nodes, nodes_of


def node(name: str, cpus: float = 8, gpus: float = 4, *, head: bool = False) -> Node:
    return Node(name, head, cpus, gpus)


@pytest.mark.parametrize("head", [node("h", 0, 4, head=True), node("h", 8, 0, head=True)])
def test_a_head_without_room_for_a_stage_takes_no_part(head):
    assert _check_nodes([head, node("a")], engines=2, gpus=1)
    assert not _check_nodes([node("h", head=True), node("a")], engines=2, gpus=1)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("h", head=True), node("a"), node("poor", gpus=0)],
        [node("poor", gpus=0, head=True)],
    ],
)
def test_any_other_node_without_room_is_named(nodes):
    with pytest.raises(ConfigError, match="poor has less"):
        _check_nodes(nodes, engines=1, gpus=1)


def test_more_engines_than_cpus_are_refused():
    with pytest.raises(ConfigError, match="17 CPUs, and the cluster has 16"):
        _check_nodes([node("h", head=True), node("a")], engines=16, gpus=0)


def test_where_nobody_answers_the_error_comes_at_once():
    with pytest.raises(RunError, match="cannot join the Ray cluster"):
        nodes_of("127.0.0.1:9")
