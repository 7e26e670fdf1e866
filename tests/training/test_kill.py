"""Runs that are ended from outside."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_training import TINY, settings, weights_hash

from megatron_synth.runs import read_metrics
from megatron_synth.training import read_state

SCRIPT = Path(__file__).parent / "tiny_training.py"
STEPS = 400


def start(out, steps=STEPS):
    config = settings(steps=steps, save_every=7, eval_every=1000)
    return subprocess.Popen(
        [
            sys.executable,
            "-W",
            "ignore",
            SCRIPT,
            out,
            TINY.model_dump_json(),
            config.model_dump_json(),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process, out, step):
    for _ in range(1200):
        if process.poll() is not None:
            raise AssertionError(f"ended early: {process.communicate()[1][-2000:]}")
        records = read_metrics(out / "metrics.jsonl")
        if records and records[-1]["step"] >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"never reached step {step}")


def finish(out):
    process = start(out)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    return out / "checkpoints" / f"step_{STEPS:08d}"


@pytest.mark.slow
def test_kill_9_at_any_time_then_a_rerun_ends_bit_for_bit_the_same(tmp_path):
    expected = finish(tmp_path / "undisturbed")
    killed = tmp_path / "killed"
    for step in (3, 63, 154):  # the last two as a checkpoint begins
        process = start(killed)
        wait_for_step(process, killed, step)
        process.kill()
        process.communicate()
    got = finish(killed)
    assert weights_hash(got) == weights_hash(expected)
    ours, theirs = (
        [(r["step"], r["loss"], r["grad_norm"]) for r in read_metrics(out / "metrics.jsonl")]
        for out in (killed, tmp_path / "undisturbed")
    )
    assert ours == theirs
    assert len(ours) == STEPS


@pytest.mark.slow
def test_sigterm_saves_and_leaves_with_a_status_to_try_again(tmp_path):
    process = start(tmp_path)
    wait_for_step(process, tmp_path, 20)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "stopped by a signal after step" in errors
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]["step"]
    newest = max((tmp_path / "checkpoints").glob("step_*"))
    assert read_state(newest).step == last < STEPS
