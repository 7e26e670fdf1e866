"""One epoch of a corpus: its documents in a drawn order, concatenated, cut into windows.

Both permutations (documents, then windows) are keyed bijections, so all that is kept of an epoch
is the number of tokens before every 32nd document of the order: a quarter of a byte a document.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_synth.blending import kernels
from megatron_synth.blending.bijection import Bijection, derive_key
from megatron_synth.blending.documents import Documents

_BLOCKS_A_PART = 1 << 14
_MOST_THREADS = 8
_KEPT_ON_DISK = 1 << 20  # documents; fewer take milliseconds

Int64s = NDArray[np.int64]


class Pieces(NamedTuple):
    """What windows are made of, in order; all arrays int64[pieces].

    Attributes:
        window: Which of the windows asked for (0, 1, ...) the piece belongs to; ascending.
        document: Index of the document in the `.idx`.
        offset: First token of the piece inside its document.
        length: Tokens of the piece, at least 1.
        begin: First token of the piece in the `.bin`.
    """

    window: Int64s
    document: Int64s
    offset: Int64s
    length: Int64s
    begin: Int64s


class EpochOrder:
    """The order of one epoch.

    With N tokens in all, window w of W = (N - 1) // S covers tokens w*S to w*S + S (S + 1 of
    them) of the concatenation: the last token of a window is the first of the next, so that each
    token but the very first is predicted once. The (N - 1) % S tokens after the last window are
    dropped.

    Args:
        documents: The documents. Where they have an order of their own, only windows are permuted.
        sequence_length: S.
        seed: The plan's seed.
        corpus: The corpus's name in the plan.
        draw: Number of the permutation: the epoch, or always 0 without reshuffling.
    """

    def __init__(
        self, documents: Documents, sequence_length: int, *, seed: int, corpus: str, draw: int
    ) -> None:
        self._documents = documents
        self._length = sequence_length
        self._order = Bijection(documents.count, derive_key(seed, corpus, "documents", draw))
        self._before = _tokens_before(documents, self._order, _name(documents, seed, corpus, draw))
        self.tokens = int(self._before[-1])
        self.windows = (self.tokens - 1) // sequence_length
        assert self.windows > 0, "the planner refuses a corpus smaller than a window"
        self._windows = Bijection(self.windows, derive_key(seed, corpus, "windows", draw))

    def pieces(self, turns: Int64s) -> Pieces:
        """The pieces of the windows that are served at `turns` (int64[n], each in [0, windows)).

        Each window's pieces add up to sequence_length + 1 tokens.
        """
        firsts = self._windows(turns) * self._length
        table, key = self._documents.table, self._order.compiled
        return Pieces(*kernels.pieces(table, key, self._before, firsts, self._length + 1))


def is_ready(documents: Documents, *, seed: int, corpus: str, draw: int) -> bool:
    """Whether opening the order costs nothing: its index is on disk, or it is a small one."""
    if not _is_kept(documents):
        return True
    return documents.folder.has(_name(documents, seed, corpus, draw))


def _name(documents: Documents, seed: int, corpus: str, draw: int) -> dict[str, Any]:
    """What decides the index of an epoch; a fixed order of documents is the same in each."""
    drawn = {"seed": seed, "corpus": corpus, "draw": draw} if documents.table.permuted else {}
    return {
        "kind": "tokens before documents",
        "content": documents.content,
        "stride": kernels.STRIDE,
        **drawn,
    }


def _is_kept(documents: Documents) -> bool:
    return documents.content is not None and documents.count >= _KEPT_ON_DISK


def _tokens_before(documents: Documents, order: Bijection, name: dict[str, Any]) -> Int64s:
    """Tokens before every 32nd document of the order, and the total."""

    def make() -> Int64s:
        return _count(documents.table, order.compiled)

    if not _is_kept(documents):
        return make()
    blocks = -(-documents.count // kernels.STRIDE)

    def is_right(before: Int64s) -> bool:
        return len(before) == blocks + 1 and bool(kernels.is_rising(before))

    return documents.folder.array(name, make, is_right)


def _count(table: kernels.Table, key: kernels.Key) -> Int64s:
    before = np.zeros(-(-table.size // kernels.STRIDE) + 1, dtype=np.int64)
    totals = before[1:]

    def count(start: int) -> None:
        part = totals[start : start + _BLOCKS_A_PART]
        kernels.sums(table, key, start * kernels.STRIDE, part)

    starts = range(0, len(totals), _BLOCKS_A_PART)
    threads = min(len(starts), len(os.sched_getaffinity(0)), _MOST_THREADS)
    if threads == 1:
        for start in starts:
            count(start)
    else:
        with ThreadPoolExecutor(threads, thread_name_prefix="epoch") as pool:
            list(pool.map(count, starts))
    np.cumsum(totals, out=totals)
    return before
