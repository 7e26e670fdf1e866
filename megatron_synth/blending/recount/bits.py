"""Which tokens of a corpus were served in an epoch: one bit a token."""

import numpy as np
from numpy.typing import NDArray

from megatron_synth.runs.compiling import compiled

_ALL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_CHUNK = 1 << 20

Int64s = NDArray[np.int64]


class Seen:
    """A set of tokens out of [0, tokens): tokens / 8 bytes, of which only touched pages are used.

    Args:
        tokens: Tokens in the `.bin`.
    """

    def __init__(self, tokens: int) -> None:
        self._words = np.zeros(-(-tokens // 64), dtype=np.uint64)
        end = 64 * len(self._words)  # bits past the last token are never missing
        self.mark(np.array([tokens]), np.array([end]))

    def mark(self, begins: Int64s, ends: Int64s) -> int:
        """Add the tokens `begins[i]` to `ends[i]` - 1; returns how many were there already.

        A span that ends before it begins is empty. All must lie in [0, tokens).
        """
        return int(_mark(self._words, begins, ends))

    def has(self, tokens: Int64s) -> NDArray[np.bool_]:
        """Whether each of `tokens` was added."""
        words = self._words[tokens >> 6] >> (tokens & 63).astype(np.uint64)
        found: NDArray[np.bool_] = (words & np.uint64(1)) != 0
        return found

    def missing(self, most: int) -> tuple[int, Int64s]:
        """How many tokens were not added, and the first ones of them, at most `most` (or 63 more).

        Looks at 8 bytes for every 64 tokens.
        """
        count, found, listed = 0, [np.empty(0, dtype=np.int64)], 0
        for start in range(0, len(self._words), _CHUNK):
            words = self._words[start : start + _CHUNK]
            holes = np.flatnonzero(words != _ALL)
            left = ~words[holes]
            count += int(np.bitwise_count(left).sum())
            if listed < most and len(holes):
                shown = slice(0, most - listed)
                bits = np.unpackbits(left[shown].astype("<u8").view("u1"), bitorder="little")
                hole, bit = np.divmod(np.flatnonzero(bits), 64)
                found.append(64 * (start + holes[hole]) + bit)
                listed += len(found[-1])
        return count, np.concatenate(found)


@compiled
def _mark(words: NDArray[np.uint64], begins: Int64s, ends: Int64s) -> int:
    """Set the bits of each span, a word at a time; count those that were set before."""
    one, full = np.uint64(1), np.uint64(0xFFFFFFFFFFFFFFFF)
    twice = 0
    for span in range(len(begins)):
        at, end = begins[span], ends[span]
        while at < end:
            low = at & 63
            count = min(64 - low, end - at)
            mask = full if count == 64 else ((one << np.uint64(count)) - one) << np.uint64(low)
            both = words[at >> 6] & mask
            while both != np.uint64(0):
                both &= both - one
                twice += 1
            words[at >> 6] |= mask
            at += count
    return twice
