"""Where a run's weights, optimizer state and steps come from; the decay branch of WSD."""

import pytest
from tiny_training import TINY, Windows, settings, weights_hash

from megatron_synth.config import ConfigError
from megatron_synth.runs import Progress, read_metrics
from megatron_synth.training import ScheduleSettings, TrainConfig, read_state, train
from megatron_synth.training.schedule import learning_rate

CONSTANT = {"kind": "constant", "peak": 3e-3, "warmup_steps": 0}


class From(Windows):
    """The windows from number `first` on."""

    def __init__(self, first):
        super().__init__(400)
        self.first = first

    def __getitem__(self, index):
        return super().__getitem__(index + self.first)


def run(out, windows=None, data_hash="d", schedule=CONSTANT, **other):
    starts = {k: other.pop(k) for k in ("init_from", "init_optimizer", "branch_from") if k in other}
    config = settings(**{"save_every": 4, "keep_checkpoints": 9, "schedule": schedule, **other})
    data = windows or Windows(400)
    return train(config, TINY, data, out, Progress(), data_hash=data_hash, **starts)


def losses(out):
    return [(r["loss"], r["grad_norm"]) for r in read_metrics(out / "metrics.jsonl")]


@pytest.fixture(scope="module")
def stable(tmp_path_factory):
    """Eight steps at a constant rate, with the checkpoint after four."""
    out = tmp_path_factory.mktemp("stable")
    result = run(out)
    return out, out / "checkpoints" / "step_00000004", result


def test_a_new_run_with_the_optimizer_kept_goes_on_as_if_nothing_had_happened(stable, tmp_path):
    out, middle, whole = stable
    data = From(4 * 4)  # a new run counts its samples from 0
    kept = run(tmp_path, data, "e", steps=4, init_from=middle, init_optimizer="keep")
    assert losses(tmp_path) == losses(out)[4:]
    assert weights_hash(kept.checkpoint) == weights_hash(whole.checkpoint)
    assert kept.steps == 4


def test_a_new_run_with_the_optimizer_reset_takes_the_weights_alone(stable, tmp_path):
    out, middle, _ = stable
    run(tmp_path, From(4 * 4), "e", steps=4, init_from=middle)
    ours, theirs = losses(tmp_path), losses(out)[4:]
    assert ours[0] == theirs[0]  # before the first update
    assert ours[1] != theirs[1]


def test_a_branch_goes_on_with_steps_data_and_optimizer(stable, tmp_path):
    out, middle, whole = stable
    branch = run(tmp_path, branch_from=middle)
    assert losses(tmp_path) == losses(out)[4:]
    assert weights_hash(branch.checkpoint) == weights_hash(whole.checkpoint)
    assert read_state(branch.checkpoint).init_from == str(middle)
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [5, 6, 7, 8]


def test_the_decay_branch_of_wsd_decays_over_the_steps_asked_for(stable, tmp_path):
    _, middle, _ = stable
    schedule = {"kind": "wsd", "peak": 3e-3, "warmup_steps": 0, "decay_steps": 3}
    run(tmp_path, schedule=schedule, steps=7, branch_from=middle, keep_checkpoints=1)
    rates = [r["lr"] for r in read_metrics(tmp_path / "metrics.jsonl")]
    assert rates == pytest.approx([3e-3 * 3 / 4, 3e-3 * 2 / 4, 3e-3 * 1 / 4], rel=1e-12)
    again = run(tmp_path, schedule=schedule, steps=7, branch_from=middle, keep_checkpoints=1)
    assert again.steps == 7  # its own checkpoint stands, the branching point is not read


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 4}, "steps: 4 are done, 4 in all now"),
        ({"data_hash": "other"}, "trained on other data"),
        ({"global_batch_size": 8}, "global_batch_size: 4 before, 8 now"),
    ],
)
def test_a_branch_that_is_another_run_is_refused(stable, tmp_path, changed, message):
    _, middle, _ = stable
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "out", branch_from=middle, **changed)
    assert not (tmp_path / "out").exists()


def test_another_optimizer_cannot_be_kept(stable, tmp_path):
    _, middle, _ = stable
    other = {"optimizer": {"beta2": 0.99}, "init_from": middle, "init_optimizer": "keep"}
    with pytest.raises(ConfigError, match=r"beta2: 0.95 there, 0.99 here(.|\n)*reset"):
        run(tmp_path, **other)


def test_two_starting_points_are_refused(stable, tmp_path):
    _, middle, _ = stable
    with pytest.raises(ConfigError, match="both set"):
        run(tmp_path, init_from=middle, branch_from=middle)


def test_warm_up_by_tokens_is_rounded_up_to_whole_steps():
    config = TrainConfig(
        steps=10,
        sequence_length=512,
        global_batch_size=8,
        schedule={"kind": "constant", "peak": 1.0, "warmup_tokens": "13K"},  # 3.17 steps of 4,096
    )
    rates = [learning_rate(config.schedule_in_steps, step, 10) for step in range(1, 6)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_decay_steps_stand_in_place_of_the_share():
    schedule = ScheduleSettings(kind="wsd", peak=1.0, final=0.1, warmup_steps=2, decay_steps=2)
    rates = [learning_rate(schedule, step, 6) for step in range(1, 7)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.1 + 0.9 * 2 / 3, 0.1 + 0.9 / 3], rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"warmup_steps": 1, "warmup_tokens": 1}, "both set"),
        ({"kind": "cosine", "decay_steps": 1}, "decay_steps is of kind wsd"),
        ({"warmup_tokens": "1M"}, "warmup_steps=245 are more than the run's 10 steps"),
        ({"kind": "wsd", "warmup_steps": 6, "decay_steps": 5}, "decay_steps=5"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(schedule, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(steps=10, schedule=schedule)
