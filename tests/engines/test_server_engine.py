"""A vLLM server of our own: it answers, it dies, we die."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from server_session import BANNED

from megatron_synth.config import DataError, RunError
from megatron_synth.engines import ServerConfig, make_engine
from megatron_synth.engines.server_process import ServerProcess

SCRIPT = Path(__file__).with_name("server_session.py")


def start(folder: Path, what: str) -> subprocess.Popen[bytes]:
    with (folder / f"{what}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), what],
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """What one driver saw of its server."""
    folder = tmp_path_factory.mktemp("server")
    process = start(folder, "ask")
    assert process.wait(500) == 0, (folder / "ask.log").read_text()[-4000:]
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def answers(session):
    return {answer["key"]: answer for answer in session["answers"]}


@pytest.mark.slow
def test_every_request_is_answered_once_as_it_asked(session, answers):
    assert len(session["answers"]) == len(answers) == 28
    for n in range(20):
        answer = answers[f"a{n}"]
        assert (answer["error"], answer["finish_reason"]) == (None, "length")
        assert len(answer["token_ids"]) == answer["output_tokens"] == 10 + n
        assert answer["prompt_tokens"] == 3
    assert answers["same0"]["token_ids"] == answers["same1"]["token_ids"]
    assert answers["same0"]["token_ids"] != answers["other"]["token_ids"]


@pytest.mark.slow
def test_banned_ids_and_stop_ids_count_as_inside_the_process(answers):
    seen = {i for answer in answers.values() for i in answer["token_ids"]}
    assert len(seen) > 50
    assert not any(i % 2 and i != 1 for i in seen)
    stopped = answers["stop"]
    assert stopped["finish_reason"] == "stop"
    assert stopped["output_tokens"] == len(stopped["token_ids"]) + 1
    assert not [i for i in stopped["token_ids"] if i % 4 == 0]


@pytest.mark.slow
def test_text_goes_as_a_chat_and_comes_back_as_text(answers):
    assert answers["text"]["error"] is None
    assert answers["text"]["text"]
    assert answers["text"]["prompt_tokens"] > len("a<|im_end|>b") + 3


@pytest.mark.slow
@pytest.mark.parametrize(("key", "words"), [("too_long", "256"), ("bad_id", "outside 0..383")])
def test_a_request_that_cannot_be_answered_says_why(answers, key, words):
    assert words in answers[key]["error"]
    assert not answers[key]["transient"]


@pytest.mark.slow
def test_an_answer_ends_where_the_context_does(answers):
    assert answers["fills"]["error"] is None
    assert answers["fills"]["output_tokens"] == 6


@pytest.mark.slow
def test_after_the_death_of_the_server_another_one_answers_what_was_open(session):
    found = session["after_a_death"]
    assert sorted(answer["key"] for answer in found) == sorted(f"b{n}" for n in range(40))
    assert all(answer["error"] is None for answer in found)


@pytest.mark.slow
def test_a_second_death_is_one_clear_error_after_the_answers_that_came(session):
    kind, text, answered = session["second_death"]
    assert kind == "RunError"
    assert "the vLLM server ended with signal 9" in text
    assert "run the same command again" in text
    assert answered >= 10


@pytest.mark.slow
def test_guesses_of_two_processes_change_no_answer(session):
    assert any("--speculative-config" in line and "ngram" in line for line in session["family"])
    assert sum("Worker_TP" in line for line in session["family"]) == 2
    assert len(session["greedy"]) == 2
    for key, plain in session["greedy"].items():
        for name in (key, key.replace("greedy", "likeliest")):
            guessed = session["guessed"][name]
            assert (guessed["error"], guessed["output_tokens"]) == (None, 80)
            assert guessed["token_ids"] == plain["token_ids"]


@pytest.mark.slow
def test_banned_ids_are_never_sampled_beside_guesses(session):
    answers = session["guessed"].values()
    assert len(answers) == 16
    assert all(answer["error"] is None for answer in answers)
    seen = {i for answer in answers for i in answer["token_ids"]}
    assert len(seen) > 30
    assert not seen.intersection(BANNED)


@pytest.mark.slow
def test_nothing_is_left_of_a_closed_engine(session):
    assert session["left"] == []


@pytest.mark.slow
def test_a_kill_of_the_driver_leaves_no_process_of_its_server(tmp_path):
    driver = start(tmp_path, "hold")
    try:
        wait_for((tmp_path / "family.json").is_file, driver, tmp_path / "hold.log")
        family = json.loads((tmp_path / "family.json").read_text())
        assert len(family) >= 3  # supervisor, server, engine
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    wait_for(lambda: not any(alive(pid) for pid in family))


def start_scripted(folder: Path, monkeypatch, body: str) -> ServerProcess:
    """A "server" that is a shell script."""
    script = folder / "script"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    return ServerProcess({}, folder, 1.0)


def test_a_server_that_never_answers_is_left_after_the_time_that_it_has(tmp_path, monkeypatch):
    with pytest.raises(RunError, match="no answer for 1 s") as caught:
        start_scripted(tmp_path, monkeypatch, "echo loading for ever; exec sleep 1000")
    assert "loading for ever" in str(caught.value)
    assert "start_seconds" in str(caught.value)


LOG = """cat <<'END'
(EngineCore pid=1) ERROR 11-26 [core.py:1] Traceback (most recent call last):
(EngineCore pid=1) ERROR 11-26 [core.py:1]     raise RuntimeError(
(EngineCore pid=1) ERROR 11-26 [core.py:1] pkg.SafetensorError: Error while deserializing header
(Worker pid=3) Exception: WorkerProc initialization failed due to an exception in a process.
(APIServer pid=2) RuntimeError: Engine core initialization failed. See root cause above.
END
exit 1"""


def test_the_error_of_a_server_that_ended_is_the_cause_and_not_its_consequence(
    tmp_path, monkeypatch
):
    with pytest.raises(RunError, match="exit status 1") as caught:
        start_scripted(tmp_path, monkeypatch, LOG)
    what = str(caught.value).split(";")[0]
    assert "SafetensorError: Error while deserializing header" in what


def test_memory_that_is_too_small_names_the_settings_that_use_it(tmp_path, monkeypatch):
    with pytest.raises(RunError, match="ran out of memory") as caught:
        start_scripted(tmp_path, monkeypatch, "echo 'ValueError: CUDA out of memory'; exit 1")
    assert "engine.concurrency" in str(caught.value)


def test_a_model_that_is_not_there_is_said_before_anything_starts(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        make_engine(ServerConfig(), tmp_path / "absent")


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition, process=None, log: Path | None = None, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < end, f"still not so after {seconds} s"
        time.sleep(0.1)
