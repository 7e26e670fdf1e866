"""Compiled loops of the shingles: characters to words to hashes, and counts over sorted hashes.

Unsigned and signed integers are never mixed in one expression: numba, like numpy, would make a
float of them.
"""

from typing import Any

import numpy as np

from megatron_synth.runs.compiling import compiled

UNKNOWN = np.uint32(0xFFFFFFFF)
"""Entry of a character that nobody has looked up yet."""
ALONE = np.uint32(1 << 30)
"""Flag of a letter that is a word by itself, with the marks on it."""
MARK = np.uint32(1 << 29)
"""Flag of a mark: it goes on with the word before it, also with a letter that stands alone."""

_PRIME = np.uint64(0x9E3779B97F4A7C15)  # odd
_WEIGHT = np.uint64(0xD6E8FEB86659FD93)  # odd, so that it has an inverse modulo 2^64
_UNWEIGHT = np.uint64(pow(int(_WEIGHT), -1, 1 << 64))
_SHIFT = np.uint64(33)
_MIX_1 = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
_CODE = np.uint32(0x1FFFFF)
_ONE = np.uint64(1)
_ZERO = np.uint64(0)


@compiled
def _mix(value: Any) -> Any:
    """Spread every input bit over all output bits (the finaliser of MurmurHash3)."""
    value ^= value >> _SHIFT
    value *= _MIX_1
    value ^= value >> _SHIFT
    value *= _MIX_2
    return value ^ (value >> _SHIFT)


@compiled
def hash_words(codes: Any, ends: Any, table: Any, words: Any, counts: Any) -> int:
    """Hashes of the words of a block of texts: of each Σ (code + 1) · P^j over its characters j.

    Args:
        codes: uint32[n], code points of all texts one after another.
        ends: int64[texts], end of each text.
        table: uint32[0x110000]: 0 ends a word, else a letter's lower case with its flags.
        words: uint64[n], is filled, in order.
        counts: int64[texts], is filled: words of each text.

    Returns:
        Hashes in `words`; or minus one minus a character that is `UNKNOWN`.
    """
    filled = place = 0
    for text in range(len(ends)):
        begin = filled
        while place < ends[text]:
            entry = table[codes[place]]
            place += 1
            if entry == 0:
                continue
            alone = entry & ALONE != 0
            word, power = _ZERO, _ONE
            while True:
                if entry == UNKNOWN:
                    return -1 - int(codes[place - 1])
                word += (np.uint64(entry & _CODE) + _ONE) * power
                power *= _PRIME
                if place == ends[text]:
                    break
                entry = table[codes[place]]
                # An unknown character has all flags: it is met at the beginning of a word then.
                if entry == 0 or entry & ALONE != 0 or (alone and entry & MARK == 0):
                    break
                place += 1
            words[filled] = _mix(word)
            filled += 1
        counts[text] = filled - begin
    return filled


@compiled
def hash_shingles(words: Any, counts: Any, size: int, out: Any) -> int:
    """Hashes of the shingles: of each Σ word · W^(k+1) over its words k, mixed.

    The sum slides: the oldest word goes out, the rest is divided by W, the newest comes in.

    Args:
        words: uint64[n], hashes of the words of all texts.
        counts: int64[texts], words of each text; becomes the shingles of each.
        size: Words in a shingle.
        out: uint64[n], is filled, in order.

    Returns:
        Hashes in `out`.
    """
    top = _ONE
    for _ in range(size):
        top *= _WEIGHT
    filled = begin = 0
    for text in range(len(counts)):
        end = begin + counts[text]
        total, weight = _ZERO, _WEIGHT
        for place in range(begin, end):
            if place - begin < size:
                total += words[place] * weight
                weight *= _WEIGHT
            else:
                total = (total - words[place - size] * _WEIGHT) * _UNWEIGHT + words[place] * top
            if place - begin >= size - 1:
                out[filled] = _mix(total)
                filled += 1
        counts[text] = max(0, end - begin - size + 1)
        begin = end
    return filled


@compiled
def count_shared(left: Any, right: Any) -> tuple[int, int]:
    """(distinct values of `left`, those of them that `right` holds); both uint64."""
    size = 2
    while size < 2 * len(left):
        size *= 2
    mask = np.uint64(size - 1)
    slots = np.zeros(size, dtype=np.uint64)  # 0 is free; the value 0 counts as 1
    met = np.zeros(size, dtype=np.uint8)
    distinct = shared = 0
    for given in left:
        value = max(given, _ONE)
        slot = value & mask
        while slots[slot] != 0 and slots[slot] != value:
            slot = (slot + _ONE) & mask
        distinct += int(slots[slot] == 0)
        slots[slot] = value
    for given in right:
        value = max(given, _ONE)
        slot = value & mask
        while slots[slot] != 0 and slots[slot] != value:
            slot = (slot + _ONE) & mask
        if slots[slot] != 0 and met[slot] == 0:
            met[slot] = 1
            shared += 1
    return distinct, shared
