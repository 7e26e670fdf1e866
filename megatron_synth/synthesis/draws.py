"""Random numbers that are arithmetic on (seed, j): the draw of request j needs no draw before it.

Philox 4x64 (Salmon et al. 2011) is a keyed counter-based generator: block j of its output is a
function of the key and j.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_WORDS = 4  # of 64 bits in a Philox block
_BLOCK = 4096

Integers = NDArray[np.int64]


def draw(seed: int, start: int, count: int, choices: int) -> tuple[Integers, Integers]:
    """Draws of requests `start` to `start + count - 1`.

    Args:
        seed: The key.
        start: First request.
        count: How many.
        choices: Rows to choose from, uniformly and with replacement; at most 2^53.

    Returns:
        rows int64[count] in [0, choices), sampling seeds int64[count] in [0, 2^63).
    """
    generator = np.random.Philox(key=seed, counter=start)
    words = np.asarray(generator.random_raw(_WORDS * count), dtype=np.uint64).reshape(-1, _WORDS)
    uniform = (words[:, 0] >> np.uint64(11)).astype(np.float64) * 2.0**-53
    rows = np.minimum((uniform * choices).astype(np.int64), choices - 1)
    return rows, (words[:, 1] >> np.uint64(1)).astype(np.int64)


def draws(seed: int, choices: int) -> Iterator[tuple[int, int, int, int]]:
    """Endless (j, row, how often that row was drawn before j, sampling seed)."""
    before = np.zeros(choices, dtype=np.int64)
    start = 0
    while True:
        rows, seeds = draw(seed, start, _BLOCK, choices)
        generations = before[rows] + _occurrence(rows)
        np.add.at(before, rows, 1)
        for offset in range(_BLOCK):
            yield (
                start + offset,
                int(rows[offset]),
                int(generations[offset]),
                int(seeds[offset]),
            )
        start += _BLOCK


def _occurrence(rows: Integers) -> Integers:
    """For each element, how many equal ones stand before it: int64[n]."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    first = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    begin = np.maximum.accumulate(np.where(first, np.arange(len(rows)), 0))
    result = np.empty(len(rows), dtype=np.int64)
    result[order] = np.arange(len(rows)) - begin
    return result
