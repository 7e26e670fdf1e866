"""Compiled loops of pairing (numba)."""

from typing import Any

import numpy as np

from megatron_synth.runs.compiling import compiled


@compiled
def share_a_number(numbers: Any, offsets: Any, first: Any, second: Any) -> Any:
    """Of each pair of lists, whether some number stands in both: bool [m].

    Args:
        numbers: int64, list after list, each ascending.
        offsets: int64 [lists + 1], where each list begins.
        first: int64 [m], lists.
        second: int64 [m], lists.
    """
    found = np.zeros(len(first), np.bool_)
    for pair in range(len(first)):
        a, a_end = offsets[first[pair]], offsets[first[pair] + 1]
        b, b_end = offsets[second[pair]], offsets[second[pair] + 1]
        while a < a_end and b < b_end:
            if numbers[a] == numbers[b]:
                found[pair] = True
                break
            if numbers[a] < numbers[b]:
                a += 1
            else:
                b += 1
    return found
