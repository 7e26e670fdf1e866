"""`synthesize` as a Slurm array: tasks as processes of their own, at the same time."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from writing_endpoint import Server, serve, write_inputs

from megatron_synth.corpus import read_documents
from megatron_synth.runs import read_manifest

pytestmark = pytest.mark.slow

SHARDS, TASKS = 7, 3
VERB = [sys.executable, "-m", "megatron_synth.cli", "synthesize", "faq"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve() as found:
        yield found


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def whole(inputs: Path, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same corpus, made by one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    ended(start(inputs, out, server, None, "ray.slurm_array=null"))
    return out


@pytest.fixture(autouse=True)
def forget_requests(whole: Path, server: Server) -> None:
    server.asked.clear()


def start(
    inputs: Path, out: Path, server: Server, task: int | None, *more: str, count: int = TASKS
) -> "subprocess.Popen[str]":
    """One task of the array, as Slurm starts it; None: outside of it."""
    slurm = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(count)}
    command = [
        *VERB,
        *("--documents", str(inputs / "documents.jsonl.zst"), "--model", str(inputs / "model")),
        *("--out", str(out), "--generations", "4", "--json", f"shards={SHARDS}"),
        *(f"ray.slurm_array={TASKS}", "ray.executor=inline", "filters.min_tokens=5"),
        *("engine.kind=endpoint", f"engine.url={server.url}", "engine.model=writer"),
        *("engine.backoff_seconds=0", *more),
    ]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return subprocess.Popen(
        command,
        env=clean if task is None else {**clean, **slurm},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]", status: int = 0) -> dict[str, object]:
    """What the task answered."""
    said, log = process.communicate(timeout=120)
    assert process.returncode == status, log
    return json.loads(said) if status == 0 else {"log": log}


def texts(out: Path) -> list[tuple[object, ...]]:
    return [
        (d.source_id, d.generation, d.seed, d.text)
        for d in read_documents(out / "documents.jsonl.zst")
    ]


def seeds(server: Server) -> list[object]:
    return [body["seed"] for body in server.asked]


def test_tasks_at_the_same_time_make_the_corpus_that_one_process_makes(
    inputs, whole, server, tmp_path
):
    out = tmp_path / "out"
    answers = [ended(p) for p in [start(inputs, out, server, task) for task in range(TASKS)]]
    joined = [answer for answer in answers if "outstanding" not in answer]
    assert joined
    assert texts(out) == texts(whole)
    assert len(seeds(server)) == len(set(seeds(server))) == 48
    ours, theirs = (read_manifest(folder).counts for folder in (out, whole))
    assert joined[0].items() >= ours.items()
    timed = {"seconds", "tokens_per_second"}
    assert {n: v for n, v in ours.items() if n not in timed} == {
        n: v for n, v in theirs.items() if n not in timed
    }
    assert sorted(path.name for path in out.iterdir()) == sorted(p.name for p in whole.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # no lock, no marker


def test_a_task_that_fails_is_named_by_the_others_and_alone_submitted_again(
    inputs, whole, server, tmp_path
):
    out = tmp_path / "out"
    ended(start(inputs, out, server, 1, "engine.url=http://127.0.0.1:9/v1"), status=1)
    assert ended(start(inputs, out, server, 0))["outstanding"] == "1-2"
    assert ended(start(inputs, out, server, 2))["outstanding"] == "1"
    assert not (out / "documents.jsonl.zst").exists()
    outside = str(ended(start(inputs, out, server, None), status=1)["log"])
    assert "tasks of the array are outstanding: 1" in outside
    assert "sbatch --array=1" in outside
    counts = ended(start(inputs, out, server, 1, count=1))
    assert counts["documents"] == 48
    assert texts(out) == texts(whole)
    assert len(seeds(server)) == len(set(seeds(server))) == 48


def test_killed_tasks_go_on_where_they_were(inputs, whole, server, tmp_path):
    out = tmp_path / "out"
    slow = ("engine.concurrency=1",)
    tasks = [start(inputs, out, server, task, *slow) for task in range(TASKS)]
    end = time.monotonic() + 60
    while len(server.asked) < 4:
        assert time.monotonic() < end
        time.sleep(0.01)
    for process in tasks:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    again = [ended(p) for p in [start(inputs, out, server, task) for task in range(TASKS)]]
    assert any("documents" in answer for answer in again)
    assert texts(out) == texts(whole)
    assert len(set(seeds(server))) == 48
    assert len(seeds(server)) <= 48 + TASKS  # what was in flight, at most


def test_the_gate_is_passed_once_for_all_tasks(inputs, whole, server, tmp_path):
    out = tmp_path / "out"
    judge = ["mideval.engine.kind=endpoint", "mideval.engine.model=judge"]
    gate = ["mideval.samples=4", f"mideval.engine.url={server.url}", *judge]
    gate += ["mideval.min_judged_share=0"]  # it writes no verdicts, but it counts
    tasks = [start(inputs, out, server, task, *gate) for task in range(TASKS)]
    assert any("documents" in answer for answer in map(ended, tasks))
    asked = [json.dumps(body) for body in server.asked if body["model"] == "judge"]
    assert 0 < len(asked) == len(set(asked))
    assert texts(out) == texts(whole)


def test_a_broken_gate_stops_every_task_and_is_measured_once(inputs, server, tmp_path):
    out = tmp_path / "out"
    gate = ["mideval.samples=4", "mideval.min_kept_share=1", "filters.min_tokens=5000"]
    tasks = [start(inputs, out, server, task, *gate) for task in range(TASKS)]
    assert all("mideval" in str(ended(process, status=1)["log"]) for process in tasks)
    assert len(server.asked) <= 4


def test_one_process_for_all_is_refused_while_a_task_is_at_work(inputs, server, tmp_path):
    out = tmp_path / "out"
    silent = socket.create_server(("127.0.0.1", 0))  # takes questions and never answers
    url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
    task = start(inputs, out, server, 0, f"engine.url={url}", "tries=200")
    try:
        end = time.monotonic() + 60
        while not list(out.glob("requests-*.log")):
            assert time.monotonic() < end
            time.sleep(0.05)
        alone = start(inputs, out, server, None, "ray.slurm_array=null", "tries=200")
        assert "another process" in str(ended(alone, status=1)["log"])
    finally:
        task.kill()
        task.communicate()
        silent.close()
