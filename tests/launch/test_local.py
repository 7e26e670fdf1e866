import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from megatron_synth.config import DataError, RunError, UserError
from megatron_synth.experiments.failure import describe, failure_file, write_failure
from megatron_synth.experiments.graph import Graph, State, Status, Step
from megatron_synth.launch.local import Command, Running, run_graph
from megatron_synth.runs import Manifest, Store

WORKER = """
import json, os, sys, time
from pathlib import Path
from megatron_synth.experiments.graph import Graph, Step
from megatron_synth.runs import Store
root, steps, name, body = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], sys.argv[4]
graph, store = Graph([Step(*s) for s in steps], {"k": 1}), Store(root / "steps")
status = graph.resolve(store)[name]
inputs = {r: graph.resolve(store)[n].manifest for r, n in status.step.inputs.items()}
with store.open(name, status.key, inputs) as work:
    exec(body)
    (work.folder / "pid").write_text(str(os.getpid()))
    store.commit(work, step=name, kind="k", key=status.key, config={}, counts={})
"""


class Silent:
    def __init__(self) -> None:
        self.order: list[str] = []
        self.most_cores = 0

    def show(self, statuses: dict[str, Status], running: Sequence[Running]) -> None:
        self.most_cores = max(self.most_cores, sum(r.step.cores for r in running))

    def finished(self, manifest: Manifest) -> None:
        self.order.append(manifest.step)


def command(root: Path, steps: list[tuple[object, ...]], bodies: dict[str, str]) -> Command:
    import json

    def build(step: Step) -> list[str]:
        body = textwrap.dedent(bodies.get(step.name, ""))
        return [sys.executable, "-c", WORKER, str(root), json.dumps(steps), step.name, body]

    return build


def run(
    root: Path, steps: list[tuple[object, ...]], bodies: dict[str, str], cores: int = 2
) -> Silent:
    display = Silent()
    graph = Graph([Step(*s) for s in steps], {"k": 1})  # type: ignore[arg-type]
    statuses = run_graph(
        graph, Store(root / "steps"), root / "logs", command(root, steps, bodies), display, cores
    )
    assert all(s.state is State.DONE for s in statuses.values())
    return display


DIAMOND: list[tuple[object, ...]] = [
    ("top", "k", {}, {}),
    ("left", "k", {"side": 1}, {"in": "top"}),
    ("right", "k", {"side": 2}, {"in": "top"}),
    ("end", "k", {}, {"l": "left", "r": "right"}),
]


def test_steps_run_after_their_inputs_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    order = run(tmp_path, DIAMOND, {}).order
    assert order[0] == "top"
    assert order[-1] == "end"
    assert sorted(order[1:3]) == ["left", "right"]
    assert run(tmp_path, DIAMOND, {}).order == []


def test_running_steps_never_ask_for_more_cores_than_there_are(tmp_path: Path) -> None:
    steps = [(f"s{i}", "k", {"i": i}, {}, 1, cores) for i, cores in enumerate([1, 2, 1, 9, 1])]
    display = run(tmp_path, steps, {f"s{i}": "time.sleep(0.3)" for i in range(5)}, cores=2)
    assert len(display.order) == 5
    assert display.most_cores in (2, 9)  # 9 is more than there is: it ran alone


def test_a_failed_step_is_one_message_and_finished_work_is_kept(tmp_path: Path) -> None:
    write = DataError("the corpus is empty", where="corpus.jsonl", fix="Give another.")
    body = f"""
    from megatron_synth.experiments.failure import describe, failure_file, write_failure
    from megatron_synth.config import DataError
    error = DataError({write.what!r}, where={write.where!r}, fix={write.fix!r})
    write_failure(failure_file(root / "logs", name), describe(error))
    sys.exit(2)
    """
    with pytest.raises(UserError) as caught:
        run(tmp_path, DIAMOND, {"left": body})
    assert "step left: corpus.jsonl: the corpus is empty" in str(caught.value)
    assert "left.log" in str(caught.value)
    assert run(tmp_path, DIAMOND, {}).order.count("top") == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [("os.kill(os.getpid(), 9)", "SIGKILL"), ("os._exit(7)", "exit status 7")],
)
def test_a_step_that_dies_without_a_word_is_described(
    tmp_path: Path, body: str, words: str
) -> None:
    with pytest.raises(RunError, match=words):
        run(tmp_path, DIAMOND, {"top": body})
    run(tmp_path, DIAMOND, {})


def test_an_old_failure_is_not_told_again(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    write_failure(failure_file(logs, "top"), describe(DataError("an old fault")))
    with pytest.raises(RunError, match="SIGKILL"):
        run(tmp_path, DIAMOND, {"top": "os.kill(os.getpid(), 9)"})


DAEMON = """
    import subprocess
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    (root / "daemon").write_text(str(child.pid))
"""


def test_nothing_that_a_step_started_outlives_it(tmp_path: Path) -> None:
    run(tmp_path, DIAMOND, {"top": DAEMON})
    assert not alive(int((tmp_path / "daemon").read_text()))


def test_a_kill_of_the_supervisor_leaves_nothing_of_its_step(tmp_path: Path) -> None:
    body = DAEMON + "    os.kill(os.getppid(), 9)\n    time.sleep(1000)"
    with pytest.raises(RunError, match="SIGKILL"):
        run(tmp_path, DIAMOND, {"top": body})
    assert not alive(int((tmp_path / "daemon").read_text()))
    run(tmp_path, DIAMOND, {})


@pytest.mark.slow
def test_a_kill_of_the_launcher_ends_every_process_and_the_next_run_goes_on(tmp_path: Path) -> None:
    launcher = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_local import DIAMOND, DAEMON, run
run(Path({str(tmp_path)!r}), DIAMOND, {{"left": DAEMON + "    time.sleep(1000)"}})
"""
    process = subprocess.Popen([sys.executable, "-c", launcher])
    wait_for(lambda: (tmp_path / "daemon").is_file() and (tmp_path / "daemon").read_text() != "")
    family = [process.pid, *[p.pid for p in psutil.Process(process.pid).children(recursive=True)]]
    assert len(family) >= 4  # launcher, supervisor, worker, daemon
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(alive(pid) for pid in family))
    assert "left" in run(tmp_path, DIAMOND, {}).order


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: "object", seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, f"still not so after {seconds} s (pid {os.getpid()})"
        time.sleep(0.1)
