"""Compiled loops of duplicate@N: keys of bands, and comparisons inside runs of equal keys."""

from typing import Any

import numpy as np

from megatron_synth.runs.compiling import compiled

_PRIME = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(32)


@compiled
def band_keys(signatures: Any, first: int, rows: int, keys: Any) -> None:
    """A 64-bit key of `rows` slots from `first` on, for each signature."""
    for document in range(len(signatures)):
        key = _PRIME
        for slot in range(first, first + rows):
            key = (key ^ np.uint64(signatures[document, slot])) * _PRIME
            key ^= key >> _SHIFT
        keys[document] = key


@compiled
def _are_near(signatures: Any, left: int, right: int, needed: int) -> bool:
    """Whether at least `needed` slots are equal; ends as soon as that is decided."""
    slots = signatures.shape[1]
    spare = slots - needed
    for slot in range(slots):
        if signatures[left, slot] != signatures[right, slot]:
            spare -= 1
            if spare < 0:
                return False
    return True


@compiled
def _compare_alone(
    signatures: Any,
    document: int,
    needed: int,
    alone: Any,
    waiting: int,
    has_one: Any,
    repeats: Any,
) -> int:
    """Compare a document with those that have no near-duplicate yet; how many still have none."""
    kept = 0
    for i in range(waiting):
        other = alone[i]
        if not has_one[other] and _are_near(signatures, document, other, needed):
            has_one[document] = has_one[other] = repeats[document] = True
        if not has_one[other]:
            alone[kept] = other
            kept += 1
    return kept


@compiled
def mark_band(
    signatures: Any,
    keys: Any,
    order: Any,
    needed: int,
    most: int,
    has_one: Any,
    repeats: Any,
) -> int:
    """Mark documents that have a near-duplicate among those with the same key.

    `order` sorts `keys`, documents of one key in their own order. Who has a near-duplicate before
    itself is compared from then on only with those that have none yet (`alone`): a run of copies
    costs a comparison each.

    Returns:
        How many documents were not compared with all others of their key, for `most`.
    """
    alone = np.empty(most, dtype=np.int64)
    cut = 0
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and keys[order[end]] == keys[order[start]]:
            end += 1
        waiting = 0
        for place in range(start, end):
            document = order[place]
            lowest = max(start, place - most)
            if not repeats[document]:
                for other_place in range(place - 1, lowest - 1, -1):
                    other = order[other_place]
                    if _are_near(signatures, document, other, needed):
                        has_one[document] = has_one[other] = repeats[document] = True
                        break
                if lowest > start and not repeats[document]:
                    cut += 1
            waiting = _compare_alone(signatures, document, needed, alone, waiting, has_one, repeats)
            if not has_one[document]:
                waiting = min(waiting, most - 1)  # past that, the last one gives way
                alone[waiting] = document
                waiting += 1
        start = end
    return cut
