import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_synth.config import DataError
from megatron_synth.evaluation import DocumentLosses
from megatron_synth.scaling import recovery_from_losses, recovery_from_scores, recovery_ratio

# SynPro, Table 1: (unique, repeat, {method: (average, printed ratio)}).
SYNPRO = {
    "400M, 0.4B": (
        0.4835,
        0.4361,
        {
            "QBSR": (0.4418, 12),
            "MATES": (0.4384, 5),
            "RePro": (0.4555, 41),
            "SynPro": (0.4779, 88),
        },
    ),
    "400M, 0.8B": (
        0.5121,
        0.4675,
        {
            "QBSR": (0.4690, 3),
            "MATES": (0.4714, 9),
            "RePro": (0.4792, 26),
            "SynPro": (0.5027, 79),
        },
    ),
    "400M, 1.2B": (
        0.5133,
        0.4734,
        {
            "QBSR": (0.4767, 8),
            "MATES": (0.4771, 9),
            "RePro": (0.4911, 44),
            "SynPro": (0.5175, 111),
        },
    ),
    # QBSR is below Repeat here (0.5152 against 0.5173): the ratio is -5 %, the paper prints 5 %.
    "1.1B, 2.2B": (
        0.5561,
        0.5173,
        {
            "QBSR": (0.5152, -5),
            "MATES": (0.5185, 3),
            "RePro": (0.5319, 38),
            "SynPro": (0.5584, 106),
        },
    ),
    "MoE, 2.2B": (0.5582, 0.5144, {"SynPro": (0.5562, 95)}),
}
ROWS = [
    pytest.param(average, repeat, unique, printed, id=f"{scale} {method}")
    for scale, (unique, repeat, methods) in SYNPRO.items()
    for method, (average, printed) in methods.items()
]


@pytest.mark.parametrize(("average", "repeat", "unique", "printed"), ROWS)
def test_synpro_table_1(average, repeat, unique, printed):
    assert abs(100 * recovery_ratio(average, repeat, unique) - printed) <= 0.5


def test_sbp_captures_42_percent_of_the_oracles_gain_at_200b():
    ratio = recovery_ratio(47.66 + 2.32, 47.66, 47.66 + 5.54)
    assert round(100 * ratio) == 42


def test_sbp_captures_48_percent_at_1t():
    """0.84 / 1.73 is 48.6 %: the paper cuts where it could round."""
    ratio = recovery_ratio(55.35 + 0.84, 55.35, 55.35 + 1.73)
    assert int(100 * ratio) == 48


def test_direction_of_the_score_changes_gains_but_not_the_ratio():
    answer = recovery_from_scores(3.8, 4.0, 3.5, lower_is_better=True)
    assert answer["recovery"] == pytest.approx(0.4)
    assert answer["gain"] == pytest.approx(0.2)
    assert answer["unique_is_better"]
    assert not recovery_from_scores(3.8, 4.0, 3.5)["unique_is_better"]


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(0.1, 10), st.floats(0.1, 5))
def test_ratio_does_not_change_with_origin_and_unit_of_the_score(run, repeat, gap, unit):
    plain = recovery_ratio(run, repeat, repeat + gap)
    moved = recovery_ratio(unit * run + 7, unit * repeat + 7, unit * (repeat + gap) + 7)
    assert moved == pytest.approx(plain, rel=1e-6, abs=1e-6)


def test_no_gap_is_an_error_that_says_so():
    with pytest.raises(DataError, match="no gap to recover"):
        recovery_ratio(1.0, 2.0, 2.0)
    with pytest.raises(DataError, match="finite"):
        recovery_ratio(float("nan"), 2.0, 1.0)


def arm(shift, noise=0.05, seed=0, documents=300):
    generator = np.random.default_rng(0)
    tokens = generator.integers(20, 300, documents)
    hard = generator.normal(4, 1, documents)
    own = np.random.default_rng(seed).normal(0, noise, documents)
    return DocumentLosses(tuple(map(str, range(documents))), tokens * (hard + shift + own), tokens)


def test_ratio_of_losses_comes_with_an_interval_around_it():
    answer = recovery_from_losses(arm(-0.2, seed=1), arm(0, seed=2), arm(-0.5, seed=3))
    assert answer.identified
    assert answer.interval.low < 0.4 < answer.interval.high
    assert answer.interval.high - answer.interval.low < 0.2
    assert answer.gap.estimate == pytest.approx(-0.5, abs=0.02)


def test_arms_are_resampled_together():
    """Hard documents are common to all arms; drawn apart, the interval would be 30 times wider."""
    answer = recovery_from_losses(
        arm(-0.2, noise=0.001, seed=1), arm(0, noise=0.001), arm(-0.5, noise=0.001, seed=3)
    )
    assert answer.interval.high - answer.interval.low < 0.01


def test_ratio_is_not_identified_where_unique_equals_repeat_within_error():
    answer = recovery_from_losses(arm(-0.2, seed=1), arm(0, seed=2), arm(0.0, seed=3))
    assert not answer.identified
    assert answer.interval is None
    assert re.search("holds zero", answer.reason)


def grouped(losses, groups):
    names = tuple(f"p{i % groups}" for i in range(len(losses.ids)))
    return DocumentLosses(losses.ids, losses.nll_sum, losses.tokens, groups=names)


def test_documents_of_a_group_are_drawn_together():
    generator = np.random.default_rng(4)
    shared = [np.repeat(generator.normal(0, 0.05, 10), 30) for _ in range(3)]
    arms = []
    for shift, by_group in zip((-0.2, 0.0, -0.5), shared, strict=True):
        plain = arm(shift + by_group, noise=0.01)
        names = tuple(f"p{i // 30}" for i in range(300))
        arms.append(DocumentLosses(plain.ids, plain.nll_sum, plain.tokens, groups=names))
    singly = [DocumentLosses(a.ids, a.nll_sum, a.tokens) for a in arms]
    wide, narrow = recovery_from_losses(*arms).interval, recovery_from_losses(*singly).interval
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_one_group_alone_identifies_nothing():
    arms = [grouped(arm(shift), 1) for shift in (-0.2, 0.0, -0.5)]
    answer = recovery_from_losses(*arms)
    assert not answer.identified
    assert answer.gap is None
    assert "one group" in answer.reason


def test_interval_covers_the_true_ratio_at_its_rate():
    covered = identified = 0
    for trial in range(200):
        answer = recovery_from_losses(
            arm(-0.1, 0.2, 3 * trial + 1, 150),
            arm(0, 0.2, 3 * trial + 2, 150),
            arm(-0.2, 0.2, 3 * trial + 3, 150),
            resamples=500,
        )
        identified += answer.identified
        covered += answer.identified and answer.interval.low <= 0.5 <= answer.interval.high
    assert identified > 190
    assert covered / identified > 0.89


def test_arms_on_other_documents_are_refused():
    with pytest.raises(DataError, match="different documents"):
        recovery_from_losses(arm(0), arm(0), arm(0, documents=100))
