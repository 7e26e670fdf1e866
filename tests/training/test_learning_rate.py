import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_synth.training import ScheduleSettings, TrainConfig
from megatron_synth.training.schedule import learning_rate

kinds = st.sampled_from(["wsd", "cosine", "constant"])


@given(kinds, st.integers(1, 300), st.floats(0, 1), st.floats(0, 1))
def test_rates_stay_between_zero_and_the_peak(kind, steps, warmup, decay):
    settings = ScheduleSettings(
        kind=kind, peak=1e-2, final=1e-4, warmup_share=warmup, decay_share=decay
    )
    rates = [learning_rate(settings, step, steps) for step in range(1, steps + 1)]
    assert all(0 < rate <= 1e-2 * (1 + 1e-12) for rate in rates)
    warm = round(warmup * steps)
    assert rates[:warm] == sorted(rates[:warm])
    assert rates[warm:] == sorted(rates[warm:], reverse=True)


def test_warm_up_reaches_the_peak_at_its_last_step():
    settings = ScheduleSettings(kind="constant", peak=1.0, warmup_steps=4)
    assert [learning_rate(settings, s, 9) for s in range(1, 7)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_cosine_is_half_way_down_in_the_middle():
    settings = ScheduleSettings(kind="cosine", peak=1.0, final=0.2, warmup_steps=0)
    assert learning_rate(settings, 50, 99) == pytest.approx(0.6)


def test_wsd_stays_at_the_peak_until_its_decay():
    settings = ScheduleSettings(kind="wsd", peak=1.0, final=0.0, warmup_steps=0, decay_share=0.2)
    rates = [learning_rate(settings, step, 100) for step in range(1, 101)]
    assert rates[:80] == [1.0] * 80
    assert rates[80] == pytest.approx(20 / 21)
    assert rates[-1] == pytest.approx(1 / 21)


def test_wsd_without_decay_is_warm_up_and_stable_alone():
    settings = ScheduleSettings(kind="wsd", peak=1.0, warmup_steps=0, decay_share=0)
    assert learning_rate(settings, 100, 100) == 1.0


def test_a_final_rate_above_the_peak_is_refused():
    with pytest.raises(ValueError, match="above peak"):
        ScheduleSettings(peak=1e-3, final=1e-2)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"warmup_steps": 11}, "warmup_steps=11 are more than the run's 10 steps"),
        ({"kind": "wsd", "warmup_steps": 6, "decay_share": 0.5}, r"warm-up \(6 steps\).*5 steps"),
        ({"kind": "wsd", "warmup_share": 0.7, "decay_share": 0.5}, r"warm-up \(7 steps\)"),
    ],
)
def test_warm_up_and_decay_longer_than_the_run_are_refused(schedule, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(steps=10, schedule=schedule)


def test_shares_that_both_round_up_still_fit():
    schedule = {"kind": "wsd", "peak": 1.0, "warmup_share": 0.5, "decay_share": 0.5}
    config = TrainConfig(steps=3, schedule=schedule)  # 1.5 steps each
    rates = [learning_rate(config.schedule, step, 3) for step in (1, 2, 3)]
    assert rates == [0.5, 1.0, 0.5]
