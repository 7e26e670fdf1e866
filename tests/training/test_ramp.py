"""A batch that grows over the first steps of a run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import TINY, Windows, settings, weights_hash

from megatron_synth.config import ConfigError
from megatron_synth.runs import Progress, read_metrics
from megatron_synth.training import TrainingStoppedError, read_state, train
from megatron_synth.training.ramp import BatchSizes, RampStage

# Of a batch of 4: two batches in steps of 1, one in steps of 2, then whole ones.
RAMP = ({"batch": 1, "steps": 8}, {"batch": 2, "steps": 2})


class Recorded(Windows):
    def __init__(self, number):
        super().__init__(number)
        self.asked = []

    def __getitem__(self, index):
        self.asked.append(index)
        return super().__getitem__(index)


def run(out, windows=None, **changed):
    config = settings(**{"micro_batch_size": 1, "steps": 14, "batch_ramp": RAMP, **changed})
    return train(
        config,
        TINY,
        windows or Windows(400),
        out,
        Progress(),
        data_hash=lambda batches: f"after {batches}",
        account=lambda batches: {"batches": batches},
    )


def losses(out):
    return [(r["step"], r["loss"], r["grad_norm"]) for r in read_metrics(out / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("ramp")
    windows = Recorded(28)
    return out, run(out, windows), windows.asked


def test_every_window_is_read_once_in_the_plans_order(whole):
    out, result, asked = whole
    assert asked == list(range(28))
    assert result.tokens == 28 * 32
    tokens = [r["tokens"] // 32 for r in read_metrics(out / "metrics.jsonl")]
    assert tokens == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 28]


def test_checkpoints_stand_where_a_batch_of_the_plan_is_whole(tmp_path):
    run(tmp_path, save_every=3, keep_checkpoints=99)
    states = [read_state(path) for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert [(s.step, s.samples, s.data_hash, s.account) for s in states] == [
        (step, 4 * batches, f"after {batches}", {"batches": batches})
        for step, batches in ((4, 1), (8, 2), (10, 3), (12, 5), (14, 7))
    ]


def test_a_signal_inside_a_batch_waits_for_its_end_and_the_run_goes_on_bit_for_bit(whole, tmp_path):
    out, result, _ = whole
    with pytest.raises(TrainingStoppedError, match="after step 4 of 14"):
        run(tmp_path, stopping={"max_hours": 1e-9})
    again = run(tmp_path)
    assert losses(tmp_path) == losses(out)
    assert weights_hash(again.checkpoint) == weights_hash(result.checkpoint)


def test_another_ramp_is_refused_at_a_resume(tmp_path):
    with pytest.raises(TrainingStoppedError):
        run(tmp_path, stopping={"max_hours": 1e-9})
    with pytest.raises(ConfigError, match="batch_ramp"):
        run(tmp_path, batch_ramp=RAMP[:1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_ramp": [{"batch": 3, "steps": 4}]}, "batch=3 does not divide"),
        ({"batch_ramp": [{"batch": 2, "steps": 3}]}, "make them a multiple of 2 steps"),
        ({"micro_batch_size": 2}, "batch=1 is not a multiple of micro_batch_size=2"),
        ({"steps": 9}, "the ramp's 10 steps are more than the run's 9"),
        ({"stopping": {"spike": {}}}, "spike and plateau"),
    ],
)
def test_what_does_not_fit_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        settings(**{"micro_batch_size": 1, "steps": 14, "batch_ramp": RAMP, **changed})


def test_warm_up_by_tokens_counts_the_small_batches():
    config = settings(
        micro_batch_size=1,
        steps=14,
        batch_ramp=RAMP,
        schedule={"kind": "constant", "peak": 1.0, "warmup_tokens": 10 * 32},
    )
    assert config.schedule_in_steps.warmup_steps == 9


STAGES = st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 6]), st.integers(1, 4)), max_size=3).map(
    lambda drawn: tuple(RampStage(batch=b, steps=n * 12 // b) for b, n in drawn)
)


@given(ramp=STAGES, steps=st.integers(0, 120))
def test_windows_are_the_sum_of_the_steps(ramp, steps):
    sizes = BatchSizes(12, ramp)
    assert sizes.misfit() is None
    assert sizes.through(steps) == sum(sizes.at(step) for step in range(1, steps + 1))
    assert sizes.steps_for(sizes.through(steps)) == steps
    assert sizes.ends_batch(steps) == (sizes.batches(steps) * 12 == sizes.through(steps))
