import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.blending.schedule import Schedule


@st.composite
def schedules(draw):
    steps, batch = draw(st.integers(1, 60)), draw(st.integers(1, 12))
    corpora = draw(st.integers(1, 8))
    cuts = sorted(
        draw(st.lists(st.integers(0, steps * batch), min_size=corpora - 1, max_size=corpora - 1))
    )
    windows = np.diff([0, *cuts, steps * batch]).tolist()
    return Schedule(windows, steps, batch)


@given(schedules())
@settings(max_examples=200, deadline=None)
def test_every_step_and_every_prefix_keep_the_shares_to_within_one_window(schedule):
    due = np.array(schedule.windows)
    before = np.array([schedule.before(step) for step in range(schedule.steps + 1)])
    steps = np.arange(schedule.steps + 1)[:, None]
    assert (before.sum(axis=1) == steps[:, 0] * schedule.batch).all()
    assert (abs(before * schedule.steps - due * steps) < schedule.steps).all()  # no drift
    assert (abs(np.diff(before, axis=0) * schedule.steps - due) < schedule.steps).all()
    assert before[-1].tolist() == due.tolist()


@given(schedules(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_each_window_of_each_corpus_is_served_once_and_in_turn(schedule, random):
    samples = np.arange(schedule.steps * schedule.batch)
    corpora, numbers = schedule.locate(samples)
    for index, count in enumerate(schedule.windows):
        assert numbers[corpora == index].tolist() == list(range(count))
    shuffled = np.array(random.sample(samples.tolist(), len(samples)))
    fresh = Schedule(schedule.windows, schedule.steps, schedule.batch)
    again = fresh.locate(shuffled)
    assert again[0].tolist() == corpora[shuffled].tolist()
    assert again[1].tolist() == numbers[shuffled].tolist()


def test_a_late_step_is_the_same_whether_or_not_earlier_ones_were_asked_for():
    windows, steps, batch = [3_001, 2_999, 14_000], 5000, 4
    one, other = Schedule(windows, steps, batch), Schedule(windows, steps, batch)
    samples = np.arange(4_990 * batch, steps * batch)
    for step in range(0, steps, 7):
        one.before(step)
    assert all(
        (a == b).all() for a, b in zip(one.locate(samples), other.locate(samples), strict=True)
    )
    assert other.before(3000) == one.before(3000)


def test_corpora_are_spread_evenly_over_a_batch():
    corpora, _ = Schedule([8, 24], 4, 8).locate(np.arange(8))
    assert [half.tolist().count(0) for half in (corpora[:4], corpora[4:])] == [1, 1]


def test_a_step_outside_the_plan_is_refused():
    with pytest.raises(AssertionError):
        Schedule([4], 2, 2).before(3)


@given(schedules())
@settings(max_examples=60, deadline=None)
def test_extra_windows_go_by_pd2s_order(schedule):
    """Anderson and Srinivasan 2004, by fractions instead of the schedule's integers."""
    steps = schedule.steps
    weights = [Fraction(n % steps, steps) for n in schedule.windows]
    a_step, had = sum(weights), [0] * len(weights)

    def priority(i):
        weight, turn = weights[i], had[i] + 1
        deadline = math.ceil(turn / weight)
        overlaps = turn / weight != deadline
        idle = 1 - weight
        group = 0 if 2 * weight < 1 else math.ceil(math.ceil(deadline * idle) / idle)
        return deadline, not overlaps, -group, i

    for step in range(steps):
        served = zip(schedule.before(step), schedule.windows, strict=True)
        extras = [before - step * (windows // steps) for before, windows in served]
        assert extras == had
        ready = [i for i, w in enumerate(weights) if w and had[i] / w < step + 1]
        for i in sorted((i for i in ready if int(had[i] / weights[i]) <= step), key=priority)[
            : int(a_step)
        ]:
            had[i] += 1
