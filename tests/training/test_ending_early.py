"""Runs that end before their last step: spikes, plateaus, the clock, slowness, hangs."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_training import TINY, Windows, settings, weights_hash

from megatron_synth.config import ConfigError, RunError
from megatron_synth.runs import Progress, read_metrics
from megatron_synth.training import TrainingStoppedError, read_state, train

CONSTANT = {"kind": "constant", "peak": 3e-3, "warmup_steps": 0}


class NoiseFrom(Windows):
    """Windows with nothing to learn from number `first` on: their loss is far higher."""

    def __init__(self, first):
        super().__init__(400)
        self.first = first

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        if index < self.first:
            return sample
        random = torch.Generator().manual_seed(index)
        return {**sample, "labels": torch.randint(0, 256, (32,), generator=random)}


def run(out, stopping, windows=None, validation=None, **other):
    config = settings(**{"schedule": CONSTANT, "stopping": stopping, **other})
    data = windows or Windows(4000)
    return train(config, TINY, data, out, Progress(), data_hash="d", validation=validation)


def steps(out):
    return [r["step"] for r in read_metrics(out / "metrics.jsonl")]


def test_a_spike_stops_the_run_before_the_weights_change(tmp_path):
    rule = {"spike": {"above": 0.4, "window": 3}}
    schedule = {**CONSTANT, "peak": 1e-2}
    other = {"steps": 40, "save_every": 100, "schedule": schedule}
    with pytest.raises(RunError, match="the loss of step 31 is a spike") as caught:
        run(tmp_path / "spike", rule, NoiseFrom(30 * 4), **other)
    good = Path(caught.value.where)
    assert good.name == "step_00000030"
    assert steps(tmp_path / "spike")[-1] == 30
    whole = run(tmp_path / "undisturbed", {}, **{**other, "steps": 30})
    assert weights_hash(good) == weights_hash(whole.checkpoint)
    # The rule looks back over a resume: the same command ends the same way, at once.
    with pytest.raises(RunError, match="the loss of step 31 is a spike"):
        run(tmp_path / "spike", rule, NoiseFrom(30 * 4), **other)


def test_without_the_rule_a_spike_is_trained_through(tmp_path):
    assert run(tmp_path, {}, NoiseFrom(4 * 4)).steps == 8


class Worsens(Windows):
    """A validation set whose loss falls for two epochs, then rises: labels turn to noise."""

    def __init__(self, readings=2):
        super().__init__(4)
        self.left = 4 * readings

    def __getitem__(self, index):
        self.left -= 1
        sample = super().__getitem__(index)
        if self.left >= 0:
            return sample
        random = torch.Generator().manual_seed(index)
        return {**sample, "labels": torch.randint(0, 256, (32,), generator=random)}


def test_a_plateau_ends_the_run_and_keeps_the_best_epoch(tmp_path):
    rule = {"plateau": {"validation": "reference", "epoch_steps": 4}}
    other = {"steps": 40, "save_every": 100, "eval_every": 1000, "keep_checkpoints": 1}
    result = run(tmp_path, rule, validation={"reference": Worsens()}, **other)
    assert (result.saturated, result.steps) == (True, 12)
    assert result.checkpoint.name == "step_00000012"
    assert result.best == tmp_path / "best" / "step_00000008"
    assert read_state(result.best).step == 8
    weights_hash(result.best)  # it can be read
    measured = [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl") if "validation" in r]
    assert measured == [4, 8, 12]
    again = run(tmp_path, rule, validation={"reference": Worsens()}, **other)
    assert again == result


def test_a_best_epoch_that_a_kill_left_unkept_is_kept_by_the_next_try(tmp_path):
    rule = {"plateau": {"validation": "reference", "epoch_steps": 4}}
    sets = {"reference": Windows(4)}
    run(tmp_path, rule, validation=sets, steps=4)
    shutil.rmtree(tmp_path / "best")
    result = run(tmp_path, rule, validation=sets, steps=6)
    assert result.best == tmp_path / "best" / "step_00000004"


def test_a_plateau_of_a_set_that_there_is_not_is_refused(tmp_path):
    rule = {"plateau": {"validation": "refrence", "epoch_steps": 4}}
    with pytest.raises(ConfigError, match=r"no validation set 'refrence'(.|\n)*: reference"):
        run(tmp_path / "out", rule, validation={"reference": Windows(4)})
    assert not (tmp_path / "out").exists()


def test_sets_are_measured_at_intervals_of_their_own(tmp_path):
    config = settings(eval_every=4, eval_intervals={"often": 2})
    sets = {"often": Windows(2), "seldom": Windows(3)}
    result = train(config, TINY, Windows(400), tmp_path, Progress(), data_hash="d", validation=sets)
    by_step = {
        r["step"]: set(r["validation"])
        for r in read_metrics(tmp_path / "metrics.jsonl")
        if "validation" in r
    }
    assert by_step == {2: {"often"}, 4: set(sets), 6: {"often"}, 8: set(sets)}
    assert set(result.validation) == set(sets)


def test_when_the_hours_are_over_a_checkpoint_is_saved_and_the_status_says_try_again(tmp_path):
    with pytest.raises(TrainingStoppedError, match="hours are over") as caught:
        run(tmp_path, {"max_hours": 1e-9})
    assert caught.value.exit_status == 75
    assert Path(caught.value.where).name == "step_00000001"
    finished = run(tmp_path, {})
    assert steps(tmp_path) == list(range(1, 9))
    assert finished.steps == 8


def test_a_run_that_stays_too_slow_fails_with_a_checkpoint(tmp_path):
    rule = {"expected_tokens_per_second": 1e12, "slow_steps": 2}
    with pytest.raises(RunError, match=r"under 50% of 1,000,000,000,000 tokens/s for 2") as caught:
        run(tmp_path, rule)
    assert caught.value.exit_status == 1
    assert Path(caught.value.where).name == "step_00000003"


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tiny_training import TINY, Windows, settings
from megatron_synth.runs import Progress
from megatron_synth.training import train

class Hangs(Windows):
    def __getitem__(self, index):
        if index == 14:
            time.sleep(120)
        return super().__getitem__(index)

config = settings(stopping={"hang_minutes": 0.05})
train(config, TINY, Hangs(400), Path(sys.argv[1]), Progress(), data_hash="d")
"""


def test_a_hang_is_told_thread_by_thread_and_leaves_with_a_status_to_try_again(tmp_path):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, tmp_path, Path(__file__).parent],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 75, done.stderr[-2000:]
    assert time.monotonic() - began < 60
    told = (tmp_path / "hang_rank_0.txt").read_text()
    for text in (told, done.stderr):
        assert "Thread" in text and "in __getitem__" in text
    assert steps(tmp_path) == [1, 2, 3]
    assert (tmp_path / "checkpoints" / "step_00000003").is_dir()


@pytest.mark.slow
def test_every_rank_tells_where_it_hangs_before_the_launcher_ends_it(tmp_path):
    """Rank 1 alone waits for data; rank 0 waits for rank 1."""
    script = tmp_path / "hangs.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [sys.executable, "-W", "ignore", *launcher, script, tmp_path, Path(__file__).parent],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=100,
        check=False,
    )
    told = [(tmp_path / f"hang_rank_{rank}.txt").read_text() for rank in (0, 1)]
    assert "in __getitem__" in told[1]
    assert "in __getitem__" not in told[0]
    assert "in finalize_model_grads" in told[0]
