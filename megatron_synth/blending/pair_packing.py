"""Whole items into bins of one capacity: best-fit decreasing.

It needs at most 11/9 of the fewest possible bins, plus a few (Johnson, Demers, Ullman, Garey and
Graham, Worst-Case Performance Bounds for Simple One-Dimensional Packing Algorithms, 1974), and
next to no more than the items fill where many of them are small.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_synth.runs.compiling import compiled


class Bins(NamedTuple):
    """Which items lie together.

    Attributes:
        items: Every item once, bin by bin; within a bin in the order in which they were given.
            int32[items] (int64 from 2**31 items on).
        starts: Where each bin begins in `items`, then their number; int64[bins + 1].
    """

    items: NDArray[np.integer]
    starts: NDArray[np.int64]


def pack_whole(sizes: NDArray[np.integer], capacity: int) -> Bins:
    """Pack items of `sizes` (int[items], each from 1 to `capacity`) into few bins.

    The largest come first, each into the bin with the least room that still takes it; equals in
    the order given. Nothing is drawn: the result depends on the arguments alone.

    Items of one size are placed together, and bins are found by the room they have left, so the
    time is O(items + capacity * distinct sizes). Memory: 16 bytes an item, result included.
    """
    assert not len(sizes) or 1 <= sizes.min() <= sizes.max() <= capacity
    kind = np.dtype(np.int32 if len(sizes) < 1 << 31 else np.int64)
    by_size = np.empty(len(sizes), dtype=kind)
    begins = _group(sizes, capacity + 1, by_size)
    bin_of = np.empty(len(sizes), dtype=kind)
    bins = _best_fit(by_size, begins, capacity, bin_of)
    items = by_size  # its memory is free again
    return Bins(items, _group(bin_of, bins, items))


@compiled
def _group(keys: Any, groups: int, indices: Any) -> Any:
    """Write the indices of `keys` (each in [0, groups)) to `indices`, by key, else in order.

    Returns where each group begins in it, int64[groups + 1].
    """
    begins = np.zeros(groups + 1, dtype=np.int64)
    for key in keys:
        begins[key + 1] += 1
    for group in range(groups):
        begins[group + 1] += begins[group]
    place = begins.copy()
    for index in range(len(keys)):
        key = keys[index]
        indices[place[key]] = index
        place[key] += 1
    return begins


@compiled
def _best_fit(by_size: Any, begins: Any, capacity: int, bin_of: Any) -> int:
    """Fill `bin_of` (int[items]); returns the number of bins.

    Items of size s are by_size[begins[s] : begins[s + 1]]. Bins with equal room form a list, the
    newest first. A bin that takes one item of size s takes as many as it can: what it has left is
    the least room over s, because smaller rooms were used up before.
    """
    newest = np.full(capacity + 1, -1, dtype=bin_of.dtype)  # by room
    older = np.empty(len(by_size), dtype=bin_of.dtype)  # by bin
    bins = 0
    widest = 0  # no bin has more room
    for size in range(capacity, 0, -1):
        at, end = begins[size], begins[size + 1]
        room = size
        while at < end:
            while room <= widest and newest[room] < 0:
                room += 1
            if room <= widest:
                bin, left = newest[room], room
                newest[room] = older[bin]
            else:
                bin, left = bins, capacity
                bins += 1
            taken = min(left // size, end - at)
            for place in range(at, at + taken):
                bin_of[by_size[place]] = bin
            at += taken
            left -= taken * size
            older[bin] = newest[left]
            newest[left] = bin
            widest = max(widest, left)
    return bins
