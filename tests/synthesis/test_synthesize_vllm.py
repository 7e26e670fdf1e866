"""The real pipeline: NeMo Curator on a private Ray, vLLM in its actor, killed and started again."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from killing import (
    PATIENCE,
    count_questions,
    family,
    generation_worker,
    kill_driver,
    read_answers,
    still_there,
    vllm_server,
    wait_for,
)

from megatron_synth.corpus import read_documents, write_documents
from megatron_synth.synthesis import DOCUMENTS, DROPPED
from megatron_synth.tokens import train_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

KILLS = 20 if os.environ.get("MEGATRON_SYNTH_TESTS") == "full" else 3
CONCURRENCY = 8
LOG = "out/requests-00000.log"
SETTINGS = {
    "tokens": 60_000,
    "max_output_tokens": 120,
    "filters": {"finished": False, "min_tokens": 20},
    "engine": {"concurrency": CONCURRENCY},
}


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
        "OMP_NUM_THREADS": "1",
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


def wait_for_answers(folder: Path, wanted: int, driver: subprocess.Popen) -> None:
    wait_for(
        lambda: len(read_answers(folder / LOG)) >= wanted or driver.poll() is not None,
        f"{wanted} answers",
    )
    assert driver.poll() is None, (folder / "stderr.txt").read_text()[-3000:]


def finish(process: subprocess.Popen, folder: Path) -> None:
    code = process.wait(timeout=PATIENCE)
    assert code == 0, (folder / "stderr.txt").read_text()[-3000:]


def test_killed_driver_and_killed_worker_give_every_key_once(folder):
    # The driver dies by kill -9, with everything it started.
    driver = start(folder)
    wait_for(lambda: len(read_answers(folder / LOG)) >= 20 or driver.poll() is not None, "answers")
    assert driver.poll() is None, (folder / "stderr.txt").read_text()[-3000:]
    children = family(driver)
    ray_folder = Path(next((folder / "out" / ".work").glob("*/ray-*.txt")).read_text())
    kill_driver(driver)
    committed = read_answers(folder / LOG)
    assert ray_folder.is_dir()

    # The next try goes on; its worker dies in the middle, and Ray starts another.
    driver = start(folder)
    wait_for(
        lambda: len(read_answers(folder / LOG)) >= len(committed) + 20 or driver.poll() is not None,
        "more answers",
    )
    assert driver.poll() is None, "it ended too soon to be killed: raise SETTINGS['tokens']"
    generation_worker(driver).kill()
    assert not ray_folder.exists()
    assert not still_there(children)
    second = read_answers(folder / LOG)
    assert committed.items() <= second.items()
    children = family(driver)
    finish(driver, folder)

    final = read_answers(folder / LOG)
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
    assert read_answers(folder / LOG) == final


@pytest.mark.timeout(3600)
def test_kills_of_driver_worker_and_server_at_random_points_give_every_key_once(folder):
    dice = random.Random(20261127)
    victims = ["driver", "worker", "server"]
    victims += [dice.choice(victims) for _ in range(KILLS - len(victims))]
    dice.shuffle(victims)
    changes = {
        "tokens": 3000 * KILLS,
        "engine": {"kind": "server", "concurrency": CONCURRENCY, "restarts": KILLS},
        "ray": {"worker_restarts": KILLS},
    }
    driver = start(folder, **changes)
    committed: dict[str, str] = {}
    for victim in victims:
        wanted = len(committed) + dice.randint(1, 12)
        wait_for_answers(folder, wanted, driver)
        if victim == "driver":
            kill_driver(driver)
            driver = start(folder, **changes)
        else:
            {"worker": generation_worker, "server": vllm_server}[victim](driver).kill()
        found = read_answers(folder / LOG)
        assert committed.items() <= found.items()
        committed = found
    children = family(driver)
    finish(driver, folder)
    final = read_answers(folder / LOG)
    assert committed.items() <= final.items()
    counts = json.loads((folder / "counts.json").read_text())
    deaths = sum(victim != "server" for victim in victims)  # a server's are made up for inside
    assert count_questions(folder / LOG) - len(final) <= deaths * CONCURRENCY
    assert counts["requests"] + counts["surplus_requests"] == len(final)
    kept = list(read_documents(folder / "out" / DOCUMENTS))
    assert len({d.metadata["request"] for d in kept}) == len(kept) == counts["documents"]
    assert not still_there(children)


def test_a_workers_error_reaches_the_driver_as_one_clear_message(folder):
    driver = start(folder, filters={"min_tokens": 500}, min_kept_after=20)
    assert driver.wait(timeout=PATIENCE) == 1
    error = (folder / "error.txt").read_text()
    assert error.startswith("RunError: shard 0: the filters keep 0 of 20 documents")
    assert not list((folder / "out" / ".work").glob("*/ray-*.txt"))
