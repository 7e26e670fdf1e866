"""Compiled loops of the streams: orders of documents, pieces of windows, copies of tokens.

Everything here is arithmetic on integers without state; what it means is said where it is called
(`bijection`, `epochs`, `windows`). The loops release the GIL. Unsigned and signed integers are
never mixed in one expression: numba, like numpy, would make a float of them.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_synth.runs.compiling import compiled

_SHIFT = np.uint64(32)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)  # multipliers of splitmix64's finalizer
_MIX_2 = np.uint64(0x94D049BB133111EB)

STRIDE = 32
"""Documents between two entries of an epoch's index."""
_AT_ONCE = 256  # documents permuted together: their rounds overlap in the processor
assert _AT_ONCE % STRIDE == 0


class Key(NamedTuple):
    """A keyed bijection on [0, size) with size <= left * right; see `bijection`."""

    size: np.uint64
    left: np.uint64
    right: np.uint64
    rounds: NDArray[np.uint64]


class Table(NamedTuple):
    """The documents of a corpus; arrays may be views of a memory map, in any alignment.

    Attributes:
        lengths: int32[sequences], tokens of each sequence.
        pointers: int64[sequences], byte at which each begins.
        borders: int64[documents + 1], first sequence of each document.
        end: Byte after the last token.
        item: Bytes of a token.
        single: Every document is one sequence; `borders` and `end` are then not looked at.
        chosen: int64[size], the documents that are meant; empty: all of them.
        size: Documents that are meant.
        permuted: They are permuted every epoch; else they keep the order of `chosen`.
    """

    lengths: NDArray[np.int32]
    pointers: NDArray[np.int64]
    borders: NDArray[np.int64]
    end: int
    item: int
    single: bool
    chosen: NDArray[np.int64]
    size: int
    permuted: bool


@compiled
def _half_round(target: Any, other: Any, round_key: Any, size: Any) -> Any:
    """(target + hash of other, uniform in [0, size)) modulo size; size under 2**32."""
    mixed = other ^ round_key
    mixed *= _MIX_1
    mixed ^= mixed >> _SHIFT
    mixed *= _MIX_2
    mixed >>= _SHIFT
    mixed *= size
    mixed >>= _SHIFT
    mixed += target
    return min(mixed, mixed - size)  # the difference wraps round to a huge number below zero


@compiled
def _permute_one(value: Any, key: Any) -> Any:
    left = value // key.right
    right = value - left * key.right
    for number in range(0, len(key.rounds), 2):
        left = _half_round(left, right, key.rounds[number], key.left)
        right = _half_round(right, left, key.rounds[number + 1], key.right)
    return left * key.right + right


@compiled
def permute(values: Any, key: Any) -> None:
    """Map each of `values` (uint64[n], all in [0, key.size)) to its place, where it stands."""
    left = np.empty(_AT_ONCE, dtype=np.uint64)
    right = np.empty(_AT_ONCE, dtype=np.uint64)
    for start in range(0, len(values), _AT_ONCE):
        part = values[start : start + _AT_ONCE]
        for i in range(len(part)):
            left[i] = part[i] // key.right
            right[i] = part[i] - left[i] * key.right
        for number in range(0, len(key.rounds), 2):
            for i in range(len(part)):
                left[i] = _half_round(left[i], right[i], key.rounds[number], key.left)
            for i in range(len(part)):
                right[i] = _half_round(right[i], left[i], key.rounds[number + 1], key.right)
        for i in range(len(part)):
            value = left[i] * key.right + right[i]
            while value >= key.size:
                value = _permute_one(value, key)
            part[i] = value


@compiled
def _document(table: Any, permuted: Any) -> Any:
    """The document at a place of the order, after the permutation."""
    if len(table.chosen):
        return table.chosen[np.int64(permuted)]
    return np.int64(permuted)


@compiled
def _begin(table: Any, document: Any) -> Any:
    """Byte at which a document begins, or, for the one after the last, at which the data ends."""
    if table.single:
        return table.pointers[document]
    sequence = table.borders[document]
    return table.end if sequence == len(table.pointers) else table.pointers[sequence]


@compiled
def _length(table: Any, document: Any) -> Any:
    """Tokens of a document."""
    if table.single:
        return np.int64(table.lengths[document])
    return (_begin(table, document + 1) - _begin(table, document)) // table.item


@compiled
def is_single(borders: Any) -> bool:
    """Whether document i is sequence i, for every i."""
    for i in range(len(borders)):  # noqa: SIM110 - a loop is what compiles
        if borders[i] != i:
            return False
    return True


@compiled
def is_rising(before: Any) -> bool:
    """Whether it begins with 0 and never falls."""
    if before[0] != 0:
        return False
    for i in range(1, len(before)):  # noqa: SIM110 - a loop is what compiles
        if before[i] < before[i - 1]:
            return False
    return True


@compiled
def _places(table: Any, key: Any, first: Any, places: Any) -> None:
    """Write the documents at the places from `first` on into `places` (uint64[n])."""
    for i in range(len(places)):
        places[i] = np.uint64(first + i)
    if table.permuted:
        permute(places, key)


@compiled
def sums(table: Any, key: Any, first: int, totals: Any) -> None:
    """Tokens of each STRIDE documents of the order, from place `first` on, into `totals`."""
    buffer = np.empty(_AT_ONCE, dtype=np.uint64)
    for start in range(0, len(totals) * STRIDE, _AT_ONCE):
        count = min(_AT_ONCE, len(totals) * STRIDE - start, table.size - first - start)
        _places(table, key, first + start, buffer[:count])
        for i in range(count):
            block = (start + i) // STRIDE
            if i % STRIDE == 0:
                totals[block] = 0
            totals[block] += _length(table, _document(table, buffer[i]))


@compiled
def tokens_of(table: Any) -> int:
    """Tokens of the documents that are meant."""
    total = 0
    for place in range(table.size):
        total += _length(table, _document(table, np.uint64(place)))
    return total


@compiled
def pieces(table: Any, key: Any, before: Any, firsts: Any, size: int) -> Any:
    """Cut the tokens `firsts[i]` to `firsts[i]` + `size` - 1 of the order into pieces.

    Args:
        table: The documents.
        key: Their permutation.
        before: int64[blocks + 1], tokens before each STRIDE documents of the order, and in all.
        firsts: int64[n].
        size: Tokens of a window.

    Returns:
        int64[5, pieces]: window, document, offset in it, length, first token in the `.bin`.
    """
    found = np.empty((5, 4 * len(firsts) + 64), dtype=np.int64)
    used = 0
    buffer = np.empty(STRIDE, dtype=np.uint64)
    for window in range(len(firsts)):
        first, last = firsts[window], firsts[window] + size
        low, high = 0, len(before) - 1  # before[low] <= first < before[high]
        while high - low > 1:
            middle = (low + high) // 2
            if before[middle] <= first:
                low = middle
            else:
                high = middle
        at = before[low]
        place = low * STRIDE
        while at < last and place < table.size:
            count = min(STRIDE, table.size - place)
            _places(table, key, place, buffer[:count])
            for i in range(count):
                document = _document(table, buffer[i])
                length = _length(table, document)
                begin, end = max(at, first), min(at + length, last)
                if begin < end:
                    if used == found.shape[1]:
                        wider = np.empty((5, 2 * used), dtype=np.int64)
                        wider[:, :used] = found
                        found = wider
                    found[0, used] = window
                    found[1, used] = document
                    found[2, used] = begin - at
                    found[3, used] = end - begin
                    found[4, used] = _begin(table, document) // table.item + begin - at
                    used += 1
                at += length
                if at >= last:
                    break
            place += count
    return found[:, :used]


@compiled
def copy(tokens: Any, begins: Any, lengths: Any, text: Any) -> None:
    """Fill `text` (int64[windows, size]) row by row with tokens[begin : begin + length] each."""
    row, at = 0, 0
    for piece in range(len(begins)):
        if at == text.shape[1]:
            row, at = row + 1, 0
        for i in range(lengths[piece]):
            text[row, at + i] = tokens[begins[piece] + i]
        at += lengths[piece]
