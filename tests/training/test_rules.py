import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_synth.training.rules import (
    SpikeRule,
    StoppingSettings,
    best_epoch,
    is_saturated,
    is_spike,
    is_too_slow,
)

some_losses = st.lists(st.floats(0, 20), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("losses", "saturated"),
    [
        ([], False),
        ([3.0], False),
        ([3.0, 2.9], False),
        ([3.0, 3.0], True),
        ([3.0, 2.8, 2.9], True),  # no better than the epoch before
        ([3.0, 2.7, 2.8, 2.75], True),  # better than the epoch before, not than the best of two
        ([2.0, 3.0, 2.9, 2.8], False),  # only the two before count, not the best of all
    ],
)
def test_saturation_is_no_gain_over_the_best_of_the_two_epochs_before(losses, saturated):
    assert is_saturated(losses) is saturated


@given(some_losses)
def test_a_loss_that_falls_every_epoch_never_saturates(losses):
    falling = sorted(set(losses), reverse=True)
    assert not any(is_saturated(falling[:n]) for n in range(len(falling) + 1))


@given(some_losses)
def test_the_best_epoch_is_the_first_of_the_lowest(losses):
    assert losses[best_epoch(losses) - 1] == min(losses)
    assert min(losses) not in losses[: best_epoch(losses) - 1]


def test_a_spike_is_far_above_the_mean_of_a_whole_window():
    rule = SpikeRule(above=1.0, window=3)
    assert is_spike([9.0, 2.0, 3.0, 4.0], 4.01, rule)
    assert not is_spike([9.0, 2.0, 3.0, 4.0], 4.0, rule)
    assert not is_spike([2.0, 2.0], 100.0, rule)


def test_slow_is_every_one_of_the_newest_steps():
    settings = StoppingSettings(expected_tokens_per_second=1000, least_throughput=0.5, slow_steps=2)
    assert is_too_slow([900, 499, 499], settings)
    assert not is_too_slow([499, 900, 499], settings)
    assert not is_too_slow([1], settings)
    assert not is_too_slow([1, 1], StoppingSettings())
