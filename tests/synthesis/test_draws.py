"""Draws are arithmetic on (seed, j)."""

from collections import Counter
from itertools import islice

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.synthesis.draws import draw, draws


@given(
    seed=st.integers(0, 2**63 - 1),
    start=st.integers(0, 10_000),
    offset=st.integers(0, 200),
    choices=st.integers(1, 1000),
)
@settings(max_examples=60, deadline=None)
def test_a_draw_needs_no_draw_before_it(seed, start, offset, choices):
    rows, seeds = draw(seed, start, offset + 1, choices)
    row, own_seed = draw(seed, start + offset, 1, choices)
    assert rows[-1] == row[0]
    assert seeds[-1] == own_seed[0]


def test_rows_are_drawn_uniformly_with_replacement():
    choices, count = 50, 100_000
    rows, seeds = draw(11, 0, count, choices)
    found = np.bincount(rows, minlength=choices)
    expected = count / choices
    chi_square = float(((found - expected) ** 2 / expected).sum())
    assert chi_square < 86  # 0.999 quantile with 49 degrees of freedom
    assert len(found) == choices
    assert len(np.unique(seeds)) == count
    assert seeds.min() >= 0


def test_another_seed_gives_another_sequence():
    assert (draw(1, 0, 100, 1000)[0] != draw(2, 0, 100, 1000)[0]).any()


def test_the_generation_counts_earlier_draws_of_the_same_row():
    seen: Counter[int] = Counter()
    for j, (index, row, generation, _) in enumerate(islice(draws(5, 7), 10_000)):
        assert index == j
        assert generation == seen[row]
        seen[row] += 1


def test_the_sequence_equals_single_draws_across_blocks():
    sequence = list(islice(draws(9, 100), 9000))
    for j in (0, 1, 4095, 4096, 4097, 8191, 8192, 8999):
        rows, seeds = draw(9, j, 1, 100)
        assert sequence[j][1] == rows[0]
        assert sequence[j][3] == seeds[0]
