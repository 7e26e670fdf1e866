"""The real pipeline: NeMo Curator on a private Ray, vLLM in its actor, killed and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_synth.corpus import read_documents, write_documents
from megatron_synth.synthesis import DOCUMENTS, DROPPED
from megatron_synth.tokens import train_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

CONCURRENCY = 8
SETTINGS = {
    "tokens": 60_000,
    "max_output_tokens": 120,
    "filters": {"finished": False, "min_tokens": 20},
    "engine": {"concurrency": CONCURRENCY},
}
PATIENCE = 400.0


@pytest.fixture
def folder(tmp_path, documents):
    """Seeds, tokenizer and a random model, as earlier steps leave them."""
    from tiny_llama import save_tiny_llama

    write_documents(tmp_path / "documents.jsonl.zst", documents)
    tokenizer = train_tokenizer([d.text for d in documents], 320, tmp_path / "tokenizer")
    save_tiny_llama(tmp_path / "model", vocab_size=tokenizer.vocab_size + 8, context=1024)
    return tmp_path


def start(folder: Path, **changes) -> subprocess.Popen:
    script = Path(__file__).with_name("real_step.py")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        # As inside a Slurm array, where Curator would drop the tasks of "other" members.
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_ARRAY_TASK_COUNT": "8",
        "SLURM_ARRAY_TASK_MIN": "0",
        "SLURM_ARRAY_TASK_MAX": "7",
    }
    log = (folder / "stderr.txt").open("a")
    return subprocess.Popen(
        [sys.executable, str(script), str(folder), json.dumps({**SETTINGS, **changes})],
        env=environment,
        stdout=log,
        stderr=log,
    )


def answers(folder: Path) -> dict[str, str]:
    """Whole answer records of the log, by key, read without the code under test."""
    path = folder / "out" / "requests-00000.log"
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    for line in path.read_text().splitlines(keepends=True):
        parts = line.split(" ", 3)
        if line.endswith("\n") and len(parts) == 4 and parts[1] == "A":
            assert parts[2] not in found, "a key is answered twice"
            found[parts[2]] = parts[3]
    return found


def wait_for(condition, what: str) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, f"waited in vain for {what}"
        time.sleep(0.05)


def family(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def generation_worker(driver: subprocess.Popen) -> psutil.Process:
    title = "MapWorker(MapBatches(GenerationStage"
    return next(p for p in family(driver) if title in command_of(p))


def command_of(process: psutil.Process) -> str:
    """Its command line; nothing of one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # a zombie too: ZombieProcess is one of them
        return ""


def still_there(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that run; a zombie has ended."""
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def finish(process: subprocess.Popen, folder: Path) -> None:
    code = process.wait(timeout=PATIENCE)
    assert code == 0, (folder / "stderr.txt").read_text()[-3000:]


def test_killed_driver_and_killed_worker_give_every_key_once(folder):
    # The driver dies by kill -9, with everything it started.
    driver = start(folder)
    wait_for(lambda: len(answers(folder)) >= 20 or driver.poll() is not None, "answers")
    assert driver.poll() is None, (folder / "stderr.txt").read_text()[-3000:]
    children = family(driver)
    worker = generation_worker(driver)
    ray_folder = Path(next((folder / "out" / ".work").glob("*/ray_folder")).read_text())
    # Ray may take seconds to end the worker, time enough to answer everything: it dies first, and
    # nobody is left to start another.
    worker.suspend()
    os.kill(driver.pid, signal.SIGKILL)
    worker.kill()
    driver.wait()
    wait_for(lambda: not still_there([worker]), "the worker's end")
    committed = answers(folder)
    assert ray_folder.is_dir()

    # The next try goes on; its worker dies in the middle, and Ray starts another.
    driver = start(folder)
    wait_for(
        lambda: len(answers(folder)) >= len(committed) + 20 or driver.poll() is not None,
        "more answers",
    )
    assert driver.poll() is None, "it ended too soon to be killed: raise SETTINGS['tokens']"
    generation_worker(driver).kill()
    assert not ray_folder.exists()
    assert not still_there(children)
    second = answers(folder)
    assert committed.items() <= second.items()
    children = family(driver)
    finish(driver, folder)

    final = answers(folder)
    assert committed.items() <= second.items() <= final.items()
    counts = json.loads((folder / "counts.json").read_text())
    assert 0 < counts["asked_again"] <= 2 * CONCURRENCY
    kept = list(read_documents(folder / "out" / DOCUMENTS))
    dropped = json.loads((folder / "counts.json").read_text())["dropped"]
    assert counts["requests"] == len(kept) + sum(dropped.values())
    assert counts["requests"] + counts["surplus_requests"] == len(final)
    assert len({d.metadata["request"] for d in kept}) == len(kept)
    assert counts["tokens"] >= SETTINGS["tokens"]
    assert not still_there(children)

    # Started once more, it makes the same files out of the log.
    before = {name: (folder / "out" / name).read_bytes() for name in (DOCUMENTS, DROPPED)}
    for name in (DOCUMENTS, DROPPED, "counts.json"):
        (folder / "out" / name).unlink()
    finish(start(folder), folder)
    assert before == {name: (folder / "out" / name).read_bytes() for name in before}
    assert answers(folder) == final


def test_a_workers_error_reaches_the_driver_as_one_clear_message(folder):
    driver = start(folder, filters={"min_tokens": 500}, min_kept_after=20)
    assert driver.wait(timeout=PATIENCE) == 1
    error = (folder / "error.txt").read_text()
    assert error.startswith("RunError: shard 0: the filters keep 0 of 20 documents")
    assert not list((folder / "out" / ".work").glob("*/ray_folder"))
