import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_synth.blending.pair_packing import pack_whole


def bins_of(sizes, capacity):
    packed = pack_whole(np.array(sizes, dtype=np.int32), capacity)
    return [part.tolist() for part in np.split(packed.items, packed.starts[1:-1])]


def best_fit_decreasing(sizes, capacity):
    """By the book: item by item, looking at every bin; the bin touched last of equal ones."""
    bins, room, touched = [], [], []
    for turn, item in enumerate(sorted(range(len(sizes)), key=lambda i: -sizes[i])):
        fitting = [b for b in range(len(bins)) if room[b] >= sizes[item]]
        if fitting:
            chosen = min(fitting, key=lambda b: (room[b], -touched[b]))
        else:
            chosen = len(bins)
            bins.append([])
            room.append(capacity)
            touched.append(0)
        bins[chosen].append(item)
        room[chosen] -= sizes[item]
        touched[chosen] = turn
    return [sorted(part) for part in bins]


def next_fit(sizes, capacity):
    bins, room = 0, 0
    for size in sizes:
        if size > room:
            bins, room = bins + 1, capacity
        room -= size
    return bins


def lengths_of_pairs(count, longest, seed=0):
    """Two documents of a web corpus each, about 500 tokens in the middle."""
    draws = np.random.default_rng(seed).lognormal(6.2, 0.9, (count, 2))
    return np.clip(draws, 8, longest // 2 - 1).astype(np.int32).sum(axis=1)


cases = st.integers(1, 40).flatmap(
    lambda c: st.tuples(st.lists(st.integers(1, c), min_size=1, max_size=120), st.just(c))
)


@given(case=cases)
def test_it_is_best_fit_decreasing(case):
    sizes, capacity = case
    assert bins_of(sizes, capacity) == best_fit_decreasing(sizes, capacity)


@given(case=cases)
def test_every_item_is_in_one_bin_none_is_over_full_and_none_empty(case):
    sizes, capacity = case
    packed = pack_whole(np.array(sizes, dtype=np.int64), capacity)
    assert sorted(packed.items.tolist()) == list(range(len(sizes)))
    assert (packed.starts[0], packed.starts[-1]) == (0, len(sizes))
    filled = [sum(sizes[i] for i in part) for part in bins_of(sizes, capacity)]
    assert all(0 < f <= capacity for f in filled)
    assert sum(f <= capacity // 2 for f in filled) <= 1  # two such would be one


def test_nothing_gives_no_bins():
    packed = pack_whole(np.array([], dtype=np.int32), 8)
    assert (packed.items.tolist(), packed.starts.tolist()) == ([], [0])


@pytest.mark.parametrize("capacity", [8193, 16385])
def test_random_lengths_leave_less_than_a_percent_over_and_far_less_than_next_fit(capacity):
    sizes = lengths_of_pairs(20_000, capacity)
    bins = len(pack_whole(sizes, capacity).starts) - 1
    fewest = -(-int(sizes.sum()) // capacity)
    assert fewest <= bins <= 1.01 * fewest
    assert bins - fewest < (next_fit(sizes.tolist(), capacity) - fewest) / 10


def test_the_bins_are_these_on_every_machine():
    sizes = (np.arange(50_000) * 2_654_435_761 % 4_093 + 1).astype(np.int32)
    packed = pack_whole(sizes, 8193)
    content = packed.items.astype("<i8").tobytes() + packed.starts.astype("<i8").tobytes()
    assert len(packed.starts) - 1 == 12_492
    assert hashlib.sha256(content).hexdigest()[:16] == "b261857e3da98883"
