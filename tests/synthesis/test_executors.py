"""The same corpus whoever runs the stages: here, a Ray of our own, a cluster that is there."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from killing import read_answers, wait_for

from megatron_synth.corpus import read_documents, write_documents
from megatron_synth.synthesis import DOCUMENTS, DROPPED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
SETTINGS = {"tokens": 20_000, "shards": 4, "workers": 2, "seed": 1}
CONCURRENCY = 8  # of the scripted engine
TIMED = {"seconds", "tokens_per_second"}


@pytest.fixture(scope="module")
def folder(documents, tokenizer, model_folder, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("inputs")
    write_documents(made / "documents.jsonl.zst", documents)
    shutil.copytree(tokenizer.folder, made / "tokenizer")
    shutil.copytree(model_folder, made / "model")
    return made


def environment() -> dict[str, str]:
    """What a node's processes and the step's need: this Python, and the scripted engine."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(HERE),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 2,
    }


def start(
    folder: Path, out: Path, seconds: float = 0.0, **settings: object
) -> "subprocess.Popen[str]":
    """The step as a process; its engine takes `seconds` for a few answers."""
    script, merged = HERE / "scripted_step.py", json.dumps({**SETTINGS, **settings})
    return subprocess.Popen(
        [sys.executable, str(script), str(folder), str(out), merged, str(seconds)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def counts(process: "subprocess.Popen[str]") -> dict[str, object]:
    said, log = process.communicate(timeout=300)
    assert process.returncode == 0, said + log[-3000:]
    return {n: v for n, v in json.loads(said).items() if n not in TIMED}


def refusal(process: "subprocess.Popen[str]", status: int) -> str:
    said, log = process.communicate(timeout=300)
    assert process.returncode == status, said + log[-3000:]
    return said


@pytest.fixture(scope="module")
def inline(folder: Path, tmp_path_factory) -> tuple[Path, dict[str, object]]:
    out = tmp_path_factory.mktemp("inline") / "out"
    return out, counts(start(folder, out, ray={"executor": "inline"}))


def check_same(out: Path, found: dict[str, object], inline: tuple[Path, dict[str, object]]) -> None:
    assert found == inline[1] | {"surplus_requests": found["surplus_requests"]}
    for name in (DOCUMENTS, DROPPED):
        ours, theirs = (
            [d for d in read_documents(each / name)] if Path(each / name).stat().st_size else []
            for each in (out, inline[0])
        )
        assert ours == theirs


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def ray_node(*options: str, before: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """A Ray node, as an administrator starts it; ended with all its processes."""
    process = subprocess.Popen(
        [*before, "ray", "start", "--block", "--disable-usage-stats", *options],
        env=environment() | {"RAY_worker_niceness": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            each.kill()  # a polite end waits half a minute for work that is there no longer
        process.wait()


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two nodes on this machine; its address."""
    address = f"127.0.0.1:{free_port()}"
    # Nobody looks whether a GPU that is declared is there.
    size = ("--num-cpus=2", "--num-gpus=1", f"--object-store-memory={100 << 20}")
    head = ("--head", f"--port={address.split(':')[1]}", "--include-dashboard=false")
    with contextlib.ExitStack() as stack:
        # A path short enough for Ray's sockets.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rt-", dir="/tmp"))
        stack.enter_context(ray_node(*head, *size, f"--temp-dir={folder}"))
        wait_for_nodes(address, 1)
        stack.enter_context(ray_node(f"--address={address}", *size))
        wait_for_nodes(address, 2)
        yield address


def alive_nodes(address: str) -> int:
    code = (
        "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR');"
        "print(sum(node['Alive'] for node in ray.nodes()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, address],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return int(done.stdout) if done.returncode == 0 else 0


def wait_for_nodes(address: str, wanted: int) -> None:
    end = time.monotonic() + 120
    while alive_nodes(address) < wanted:
        assert time.monotonic() < end, f"{wanted} nodes did not come up"
        time.sleep(1)


def test_a_ray_of_our_own(folder, inline, tmp_path):
    found = counts(start(folder, tmp_path / "out"))
    check_same(tmp_path / "out", found, inline)


def test_a_cluster_that_is_there(folder, inline, cluster, tmp_path):
    found = counts(start(folder, tmp_path / "out", ray={"address": cluster}))
    check_same(tmp_path / "out", found, inline)
    assert len(list(tmp_path.glob("node-*"))) == 2  # an engine on each
    assert not list((tmp_path / "out").glob(".*"))
    assert alive_nodes(cluster) == 2  # left as it was


def test_more_gpus_than_the_cluster_has_are_refused(folder, cluster, tmp_path):
    said = refusal(start(folder, tmp_path / "out", workers=3, ray={"address": cluster}), 2)
    assert "3 engines of 1 GPUs each are asked for, but 1 + 1 are here" in said


def test_more_engines_than_cpus_are_refused(folder, cluster, tmp_path):
    endpoint = {"kind": "endpoint", "url": "http://127.0.0.1:9/v1", "model": "generator"}
    changes = {"workers": 4, "engine": endpoint, "ray": {"address": cluster}}
    said = refusal(start(folder, tmp_path / "out", **changes), 2)
    assert "4 engines and the stages after them need 5 CPUs, and the cluster has 4" in said


def test_a_killed_driver_leaves_the_cluster_and_its_committed_answers(folder, cluster, tmp_path):
    out, settings = tmp_path / "out", {"ray": {"address": cluster}}
    driver = start(folder, out, seconds=0.2, **settings)
    logs = [out / f"requests-{shard:05d}.log" for shard in range(4)]
    wait_for(lambda: sum(len(read_answers(log)) for log in logs) > 20, "answers")
    driver.kill()
    driver.communicate()
    committed = [read_answers(log) for log in logs]
    found = counts(start(folder, out, **settings))
    final = [read_answers(log) for log in logs]
    assert all(early.items() <= late.items() for early, late in zip(committed, final, strict=True))
    assert found["requests"] + found["surplus_requests"] == sum(map(len, final))
    assert found["asked_again"] <= 2 * CONCURRENCY
    assert alive_nodes(cluster) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="hiding a folder from a node takes a namespace: root")
def test_a_node_that_does_not_see_the_folder_is_named(folder, cluster, tmp_path):
    hide = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"')
    blind = ray_node(
        f"--address={cluster}", "--num-cpus=1", "--num-gpus=1", before=(*hide, str(tmp_path))
    )
    with blind:
        wait_for_nodes(cluster, 3)
        said = refusal(start(folder, tmp_path / "out", ray={"address": cluster}), 1)
    assert "not every node of the cluster sees this folder" in said
    assert str(tmp_path / "out") in said
