from pathlib import Path

import pytest

from megatron_synth.config import ConfigError
from megatron_synth.experiments.graph import Graph, State, Step
from megatron_synth.runs import Store

VERSIONS = {"k": 1}


def chain() -> list[Step]:
    return [
        Step("c", "k", {}, {"in": "b"}),
        Step("a", "k", {"x": 1}),
        Step("b", "k", {}, {"in": "a"}),
    ]


def finish(store: Store, graph: Graph, name: str, content: str) -> None:
    status = graph.resolve(store)[name]
    assert status.state is State.READY
    assert status.key is not None
    inputs = {
        role: manifest
        for role, parent in status.step.inputs.items()
        if (manifest := graph.resolve(store)[parent].manifest)
    }
    with store.open(name, status.key, inputs) as work:
        (work.folder / "content").write_text(content)
        store.commit(work, step=name, kind="k", key=status.key, config={}, counts={})


def states(graph: Graph, store: Store) -> str:
    return " ".join(f"{n}:{s.state.value}" for n, s in graph.resolve(store).items())


def test_steps_stand_in_an_order_in_which_they_can_be_run() -> None:
    assert [step.name for step in Graph(chain(), VERSIONS)] == ["a", "b", "c"]


def test_a_step_is_ready_when_its_inputs_are_done(tmp_path: Path) -> None:
    graph, store = Graph(chain(), VERSIONS), Store(tmp_path)
    assert states(graph, store) == "a:ready b:waiting c:waiting"
    finish(store, graph, "a", "1")
    assert states(graph, store) == "a:done b:ready c:waiting"
    finish(store, graph, "b", "2")
    finish(store, graph, "c", "3")
    assert states(graph, store) == "a:done b:done c:done"


def test_a_changed_setting_reruns_only_what_depends_on_its_outcome(tmp_path: Path) -> None:
    store = Store(tmp_path)
    graph = Graph(chain(), VERSIONS)
    for name in "abc":
        finish(store, graph, name, name)
    changed = [Step("a", "k", {"x": 2}), *[s for s in chain() if s.name != "a"]]
    again = Graph(changed, VERSIONS)
    assert states(again, store) == "a:ready b:waiting c:waiting"
    finish(store, again, "a", "a")  # another config, the same content: the rest still holds
    assert states(again, store) == "a:done b:done c:done"


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([Step("a", "k", {}), Step("a", "k", {})], "two steps have this name"),
        ([Step("a1", "k", {}), Step("b", "k", {}, {"in": "a"})], "Did you mean 'a1'"),
        ([Step("a", "k", {}, {"i": "b"}), Step("b", "k", {}, {"i": "a"})], "wait for each other"),
    ],
)
def test_a_graph_that_cannot_be_run_is_refused(steps: list[Step], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Graph(steps, VERSIONS)


def test_a_part_of_the_graph_has_what_a_step_needs_and_nothing_else() -> None:
    graph = Graph([*chain(), Step("other", "k", {}, {"in": "a"})], VERSIONS)
    assert list(graph.up_to("b").steps) == ["a", "b"]
    with pytest.raises(ConfigError, match="Did you mean 'other'"):
        graph.up_to("othr")
