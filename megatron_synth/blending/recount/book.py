"""One corpus as the audit reads it: its `.idx` parsed anew, every token a position."""

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_synth.blending.plan import PlannedCorpus
from megatron_synth.blending.recount.source import places, selected
from megatron_synth.blending.sizes import path_prefix

_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_HEAD = 34
_CHUNK = 1 << 20
_SMALL = 1 << 24  # tokens: 64 MB of positions

Int64s = NDArray[np.int64]


class Pieces(NamedTuple):
    """Windows taken apart where the document changes; int64[pieces] each, in the windows' order.

    Attributes:
        window: Which window, from 0.
        offset: Place of the piece's first token in its window's text of S + 1.
        document: Whose tokens they are.
        begin: Position of its first token in the `.bin`.
        end: Position after its last.
    """

    window: Int64s
    offset: Int64s
    document: Int64s
    begin: Int64s
    end: Int64s


class Positions:
    """Stands in for a corpus's tokens: every token is its own position in the `.bin`.

    A small corpus is better served by `np.arange`, which compiled code can read.
    """

    def __getitem__(self, span: slice) -> Int64s:
        """Positions span.start to span.stop - 1."""
        return np.arange(span.start, span.stop)


class Book:
    """A corpus: its tokens, where its documents lie, which are meant, and in which order.

    Costs 8 bytes a document, 1 more with a selection, 8 more with a fixed order.

    Args:
        prefix: Path of the corpus, with or without `_text_document`.
        corpus: Its line of the plan, for selection and order.

    Attributes:
        base: Path without `.bin`.
        tokens: Ids in the `.bin`, memory-mapped.
        starts: int64[documents + 1], position of each document's first token, then the total.
        meant: bool[documents], documents that are meant; None: all.
        place: int64[documents], place of each document in the fixed order, -1 without one (and
            for empty documents); None: no fixed order.
        count: Tokens of the documents that are meant.
        documents: Documents that are meant.
        full: Those of them that hold tokens.

    Raises:
        DataError: Selection or order do not fit the corpus.
    """

    def __init__(self, prefix: str | Path, corpus: PlannedCorpus) -> None:
        self.base = path_prefix(prefix)
        raw = np.memmap(f"{self.base}.idx", "u1", "r")
        code, sequences, borders = struct.unpack_from("<BQQ", raw[:_HEAD].tobytes(), 17)
        at_pointers, at_borders = _HEAD + 4 * sequences, _HEAD + 12 * sequences
        pointers = raw[at_pointers:at_borders].view("<i8")
        firsts = raw[at_borders : at_borders + 8 * borders].view("<i8")
        self.tokens = np.asarray(np.memmap(f"{self.base}.bin", _DTYPES[code], "r"))
        self.starts = np.full(borders, len(self.tokens), dtype=np.int64)
        for chunk in range(0, borders, _CHUNK):
            first = firsts[chunk : chunk + _CHUNK]
            inside = first < sequences
            begins = pointers[first[inside]] // self.tokens.itemsize
            self.starts[chunk : chunk + _CHUNK][inside] = begins
        self.meant: NDArray[np.bool_] | None = None
        self.place: Int64s | None = None
        source = corpus.source
        if source is not None and source.select is not None:
            self.meant = selected(source.select, self.base, np.diff(self.starts))
        if source is not None and source.order is not None:
            full = np.diff(self.starts) > 0
            self.place = places(source.order, full if self.meant is None else full & self.meant)
        self.count, self.documents, self.full = self._counts()

    def positions(self) -> "Positions | NDArray[np.int32]":
        """What has every token's position where the `.bin` has the token."""
        if len(self.tokens) > _SMALL:
            return Positions()
        return np.arange(len(self.tokens), dtype=np.int32)

    def unmeant(self) -> tuple[Int64s, Int64s]:
        """Begins and ends of the spans of the `.bin` that hold no token that is meant."""
        if self.meant is None:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        edges = np.flatnonzero(np.diff(self.meant, prepend=True, append=True))
        return self.starts[edges[::2]], self.starts[edges[1::2]]

    def document_of(self, positions: Int64s) -> Int64s:
        """The document that holds each position."""
        return np.searchsorted(self.starts, positions, side="right") - 1

    def pieces(self, text: Int64s) -> Pieces:
        """Take windows apart: where positions do not follow each other, and at documents' borders.

        Args:
            text: Positions, int64[windows, S + 1], all in the `.bin`.
        """
        width = text.shape[1]
        flat = text.ravel()
        breaks = flat[1:] != flat[:-1] + 1
        breaks[width - 1 :: width] = True
        cuts = np.concatenate([[0], np.flatnonzero(breaks) + 1, [len(flat)]])
        begin, length = flat[cuts[:-1]], np.diff(cuts)
        first, last = self.document_of(begin), self.document_of(begin + length - 1)
        each = last - first + 1  # documents that the run touches, empty ones between them included
        run = np.repeat(np.arange(len(begin)), each)
        document = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(each) - each, each)
        begins = np.maximum(begin[run], self.starts[document])
        ends = np.minimum((begin + length)[run], self.starts[document + 1])
        window, offset = np.divmod(cuts[run] + begins - begin[run], width)
        full = ends > begins
        return Pieces(*(a[full] for a in (window, offset, document, begins, ends)))

    def _counts(self) -> tuple[int, int, int]:
        tokens = documents = full = 0
        for chunk in range(0, len(self.starts) - 1, _CHUNK):
            sizes = np.diff(self.starts[chunk : chunk + _CHUNK + 1])
            if self.meant is not None:
                sizes = sizes[self.meant[chunk : chunk + _CHUNK]]
            tokens += int(sizes.sum())
            documents += len(sizes)
            full += int(np.count_nonzero(sizes))
        return tokens, documents, full
