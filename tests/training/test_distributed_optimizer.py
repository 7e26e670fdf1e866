"""Ranks that share the optimizer's state: the plain optimizer's numbers, and kills."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_training import TINY, Windows, settings, weights_hash

from megatron_synth.config import ConfigError
from megatron_synth.runs import Progress, read_metrics
from megatron_synth.training import read_state, train
from megatron_synth.training.resume import check_resume

SCRIPT = Path(__file__).parent / "tiny_training.py"
STEPS = 60


def start(out, *, distributed=True, ranks=2):
    config = settings(
        steps=STEPS,
        save_every=7,
        eval_every=1000,
        optimizer={"distributed": distributed},
    )
    return subprocess.Popen(
        [
            *(sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(ranks)),
            *(SCRIPT, out, TINY.model_dump_json(), config.model_dump_json()),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process, out):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return out / "checkpoints" / f"step_{STEPS:08d}"


def figures(out):
    return [(r["step"], r["loss"], r["grad_norm"]) for r in read_metrics(out / "metrics.jsonl")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    return out, finish(start(out), out)


@pytest.mark.slow
def test_kill_9_of_all_ranks_then_a_rerun_ends_bit_for_bit_the_same(undisturbed, tmp_path):
    process = start(tmp_path)
    for _ in range(1200):
        assert process.poll() is None, process.communicate()[1][-2000:]
        records = read_metrics(tmp_path / "metrics.jsonl")
        if records and records[-1]["step"] >= 25:
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    got = finish(start(tmp_path), tmp_path)
    expected_out, expected = undisturbed
    assert figures(tmp_path) == figures(expected_out)
    assert len(figures(tmp_path)) == STEPS
    assert weights_hash(got) == weights_hash(expected)


@pytest.mark.slow
def test_sharing_the_state_changes_no_number_beyond_rounding(undisturbed, tmp_path):
    finish(start(tmp_path, distributed=False), tmp_path)
    for ours, theirs in zip(figures(undisturbed[0]), figures(tmp_path), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_float64_state_is_refused(tmp_path):
    config = settings(precision="fp64", optimizer={"distributed": True})
    with pytest.raises(ConfigError, match="keeps its state in float32"):
        train(config, TINY, Windows(400), tmp_path, Progress(), data_hash="tiny")
    assert not list(tmp_path.glob("checkpoints/step_*"))


def test_one_process_resumes_with_a_step_of_its_own_for_every_parameter(tmp_path):
    """Two steps after the resume: a shared step would show in the second."""
    schedule = {"kind": "constant", "peak": 3e-3, "warmup_steps": 0}
    for steps, out in ((3, "halves"), (8, "halves"), (8, "whole")):
        config = settings(steps=steps, schedule=schedule, optimizer={"distributed": True})
        train(config, TINY, Windows(400), tmp_path / out, Progress(), data_hash="tiny")
    assert figures(tmp_path / "halves") == figures(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"optimizer": {"distributed": False}}, "optimizer"),
        ({"optimizer": {"distributed": True}, "expert_parallel": 2}, "expert_parallel: 1 before"),
    ],
    ids=["plain", "experts"],
)
def test_a_resume_that_its_state_cannot_follow_is_refused(change, named, tmp_path):
    schedule = {"kind": "constant", "peak": 3e-3, "warmup_steps": 0}
    first = settings(steps=1, schedule=schedule, optimizer={"distributed": True})
    train(first, TINY, Windows(400), tmp_path, Progress(), data_hash="tiny")
    before = read_state(tmp_path / "checkpoints" / "step_00000001")
    now = before.model_copy(update={"train": settings(steps=2, schedule=schedule, **change)})
    with pytest.raises(ConfigError, match=named):
        check_resume(before, now, tmp_path)
