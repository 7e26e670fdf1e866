"""Killing a step on Ray, and reading its request log without the code under test."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PATIENCE = 400.0


def read_answers(log: Path) -> dict[str, str]:
    """Whole answer records of a log, by key; each is there once."""
    found: dict[str, str] = {}
    for kind, key, content in _records(log):
        if kind == "A":
            assert key not in found, "a key is answered twice"
            found[key] = content
    return found


def count_questions(log: Path) -> int:
    """How often a request was handed to the engine, those that were asked again included."""
    return sum(kind == "Q" for kind, _, _ in _records(log))


def _records(log: Path) -> list[list[str]]:
    if not log.is_file():
        return []
    lines = log.read_text().splitlines(keepends=True)
    records = [line.split(" ", 3)[1:] for line in lines if line.endswith("\n")]
    return [record for record in records if len(record) == 3]


def wait_for(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, f"waited in vain for {what}"
        time.sleep(0.05)


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def generation_worker(driver: subprocess.Popen[bytes]) -> psutil.Process:
    title = "MapWorker(MapBatches(GenerationStage"
    return next(p for p in family(driver) if title in command_of(p))


def vllm_server(driver: subprocess.Popen[bytes]) -> psutil.Process:
    """The server itself, not its supervisor."""
    lines = [(p, command_of(p)) for p in family(driver)]
    return next(p for p, line in lines if "api_server" in line and "supervise" not in line)


def kill_driver(driver: subprocess.Popen[bytes]) -> None:
    """`kill -9` of a step's own process while its worker generates.

    Ray may take seconds to end the worker, time enough to answer everything: it is stopped first
    and dies too, when nobody is left to start another.
    """
    worker = generation_worker(driver)
    worker.suspend()
    driver.kill()
    worker.kill()
    driver.wait()
    wait_for(lambda: not still_there([worker]), "the worker's end")


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
