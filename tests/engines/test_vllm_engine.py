"""The real vLLM on this machine, with a small random model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from vllm_session import BANNED, HOSTILE, REPEATING

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """What one vLLM process answered to everything that the tests ask."""
    script = Path(__file__).with_name("vllm_session.py")
    folder = tmp_path_factory.mktemp("vllm")
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


def test_every_request_is_answered_once(session):
    assert len(session["order"]) == len(set(session["order"])) == len(session["answers"]) == 61


def test_lengths_and_finish_reasons_are_right(session):
    for n in range(40):
        answer = session["answers"][f"a{n}"]
        assert answer["error"] is None
        assert answer["finish_reason"] == "length"
        assert len(answer["token_ids"]) == answer["output_tokens"] == 10 + n
        assert answer["prompt_tokens"] == 3


def test_banned_ids_are_never_sampled(session):
    for answers in (session["answers"], session["guessed"]):
        seen = {i for answer in answers.values() for i in answer["token_ids"]}
        assert not seen.intersection(BANNED)
        assert len(seen) > 50


def test_the_seed_decides_the_answer(session):
    answers = session["answers"]
    assert answers["same0"]["token_ids"] == answers["same1"]["token_ids"]
    assert answers["same0"]["token_ids"] != answers["other"]["token_ids"]


def test_a_stop_id_ends_the_answer_and_is_left_out_of_it(session):
    answer = session["answers"]["stop"]
    assert answer["finish_reason"] == "stop"
    assert answer["output_tokens"] == len(answer["token_ids"]) + 1
    assert not [i for i in answer["token_ids"] if i % 4 == 0]


def test_text_goes_as_a_chat_whose_end_ends_the_answer(session):
    """2 is `<|im_end|>`, 0 the tokenizer's EOS; the document spells the first and never gets it."""
    answers = [session["answers"][f"chat{n}"] for n in range(6)]
    assert len({answer["prompt_tokens"] for answer in answers}) == 1
    assert answers[0]["prompt_tokens"] > len(HOSTILE) // 2
    assert not {i for answer in answers for i in answer["token_ids"]} & {0, 2}
    stopped = [answer for answer in answers if answer["finish_reason"] == "stop"]
    assert stopped
    assert all(a["output_tokens"] == len(a["token_ids"]) + 1 for a in stopped)
    assert all(answer["text"] for answer in answers if len(answer["token_ids"]) > 5)


def test_guessed_tokens_change_no_greedy_answer_and_save_steps(session):
    for n in range(len(REPEATING)):
        plain, guessed = session["answers"][f"greedy{n}"], session["guessed"][f"greedy{n}"]
        assert guessed["token_ids"] == plain["token_ids"]
        assert guessed["output_tokens"] == 80
    assert session["steps"] < 80


def test_beside_guesses_sampled_and_greedy_requests_of_one_batch_follow_their_own_settings(session):
    """With a share of probability that holds one token, sampling says what a greedy answer says."""
    for n in range(len(REPEATING)):
        plain = session["answers"][f"greedy{n}"]["token_ids"]
        assert session["guessed"][f"likeliest{n}"]["token_ids"] == plain
        assert session["guessed"][f"beside_greedy{n}"]["token_ids"] == plain


def test_two_processes_give_the_greedy_answers_of_one_and_end_with_the_engine(session):
    assert len(session["spread"]) == len(REPEATING)
    for key, spread in session["spread"].items():
        assert spread["token_ids"] == session["answers"][key]["token_ids"]
    assert session["left"] == []


def test_prompts_that_fill_the_context_are_answered_with_seeds(session):
    """A prompt taken in pieces would need a generator that can be rewound: CPUs have none."""
    for n in range(6):
        assert session["answers"][f"long{n}"]["output_tokens"] == 20


@pytest.mark.parametrize(
    ("key", "words"),
    [("too_long", "longer than"), ("bad_id", "outside 0..383"), ("empty", "empty")],
)
def test_a_request_that_cannot_be_answered_says_why_and_harms_no_other(session, key, words):
    answer = session["answers"][key]
    assert words in answer["error"]
    assert answer["finish_reason"] == "error"
    assert not answer["transient"]


def test_a_closed_iterator_cancels_what_was_running(session):
    first, after = session["cancelled"]
    assert first.startswith("b")
    assert after == ["after"]


def test_what_vllm_cannot_run_here_is_a_clear_error(session):
    kind, text = session["head_size"]
    assert kind == "ConfigError"
    assert "head size 16" in text
    kind, text = session["memory"]
    assert kind == "RunError"
    assert "kv_cache_gb" in text
    kind, text = session["cores"]
    assert kind == "ConfigError"
    assert "tensor_parallel is 10000" in text
