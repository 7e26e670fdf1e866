"""Read an indexed dataset through memory maps, without torch and without Megatron-Core."""

import mmap
import os
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from megatron_synth.config import DataError
from megatron_synth.packing.header import path_prefix, read_header
from megatron_synth.packing.info import CorpusPaths
from megatron_synth.packing.layout import HEADER

_BLOCK = 1 << 20
_BLOCK_DOCUMENTS = 1 << 16
_MAPPED = 1 << 26
_AGAIN = "The pair of files is cut short or mixed up: pack the corpus again."

Int64s = NDArray[np.int64]


class Block(NamedTuple):
    """Documents that follow each other, in the form that `IndexedWriter.add` takes.

    Attributes:
        first: Number of the first document.
        documents: How many.
        ids: Ids [n] of all of them, a view of the `.bin`.
        lengths: int32, ids of each sequence.
        sequences: int64, sequences of each document; None where each document is one.
        modes: int8, mode of each sequence, in multimodal datasets.
    """

    first: int
    documents: int
    ids: NDArray[Any]
    lengths: NDArray[np.int32]
    sequences: Int64s | None
    modes: NDArray[np.int8] | None


class IndexedReader:
    """A `.bin`/`.idx` pair, of any dtype that Megatron-Core reads, with or without modes.

    Arrays are views of memory maps: nothing is read before it is used, and nothing is kept.

    Args:
        prefix: Path without `.bin`, with or without `_text_document`.
        check: Read the whole `.idx` and compare it with itself and with the `.bin`'s size (GB/s).

    Attributes:
        paths: The files.
        dtype: Of the ids.
        documents, sequences, tokens: Counts.
        lengths: int32[sequences], ids of each sequence.
        offsets: int64[sequences], byte of the `.bin` at which each sequence begins.
        borders: int64[documents + 1]: document i is sequences borders[i] to borders[i + 1] - 1.
        modes: int8[sequences] or None.

    Raises:
        DataError: No such dataset, half of one, not a dataset, cut short, or damaged.
    """

    def __init__(self, prefix: str | Path, *, check: bool = True) -> None:
        self.paths = CorpusPaths(path_prefix(prefix))
        header = read_header(self.paths.idx)
        index, count = _open(self.paths.idx), header.sequences
        self.dtype = header.dtype
        self.documents, self.sequences = header.documents, count
        self.lengths: NDArray[np.int32] = _part(index, "<i4", HEADER.size, count)
        self.offsets: Int64s = _part(index, "<i8", header.offsets_at, count)
        self.borders: Int64s = _part(index, "<i8", header.borders_at, header.documents + 1)
        self.modes: NDArray[np.int8] | None = (
            _part(index, "i1", header.modes_at, count) if header.modes else None
        )
        data = _open(self.paths.bin)
        size = 0 if data is None else len(data)
        self.tokens = size // self.dtype.itemsize
        self._ids = _part(data, self.dtype, 0, self.tokens)
        self._maps = [source for source in (index, data) if source is not None]
        if check:
            self._check(size)

    @property
    def prefix(self) -> Path:
        """Path without `.bin`: what Megatron calls the path prefix."""
        return self.paths.stem

    def document(self, number: int) -> NDArray[Any]:
        """Ids of a document, all its sequences one after another; IndexError past the end."""
        return self._ids[slice(*self.span(number))]

    def sequence(self, number: int) -> NDArray[Any]:
        """Ids of a sequence; IndexError past the end."""
        if not 0 <= number < self.sequences:
            raise IndexError(f"sequence {number} of {self.sequences}")
        begin = self._begin(number)
        return self._ids[begin : begin + int(self.lengths[number])]

    def sequences_of(self, document: int) -> range:
        """Numbers of a document's sequences; empty for an empty document."""
        if not 0 <= document < self.documents:
            raise IndexError(f"document {document} of {self.documents}")
        return range(int(self.borders[document]), int(self.borders[document + 1]))

    def span(self, document: int) -> tuple[int, int]:
        """First token of a document, counted from the first of the `.bin`, and the one after."""
        sequences = self.sequences_of(document)
        return self._begin(sequences.start), self._begin(sequences.stop)

    def tokens_before(self, document: int) -> int:
        """Tokens before a document; `document` may be the number of documents."""
        return self._begin(int(self.borders[document]))

    def ids(self, begin: int, end: int) -> NDArray[Any]:
        """Ids of tokens `begin` to `end` - 1 of the `.bin`, whatever documents they are of."""
        return self._ids[begin:end]

    def document_at(self, token: int) -> int:
        """The document that holds token `token` of the `.bin`."""
        if not 0 <= token < self.tokens:
            raise IndexError(f"token {token} of {self.tokens}")
        # By hand: numpy's searchsorted would copy these arrays, which are not aligned.
        sequence = bisect_right(range(self.sequences), token, key=self._begin) - 1
        return bisect_right(range(self.documents), sequence, key=lambda d: self.borders[d]) - 1

    def block(self, first: int, last: int) -> Block:
        """Documents `first` to `last` - 1."""
        borders = np.array(self.borders[first : last + 1])
        sequences = slice(int(borders[0]), int(borders[-1]))
        counts = np.diff(borders)
        return Block(
            first,
            last - first,
            self._ids[self._begin(sequences.start) : self._begin(sequences.stop)],
            self.lengths[sequences],
            None if bool(np.all(counts == 1)) else counts,
            None if self.modes is None else self.modes[sequences],
        )

    def blocks(
        self, first: int = 0, last: int | None = None, tokens: int = _BLOCK
    ) -> Iterator[Block]:
        """Documents `first` to `last` - 1 in blocks of at most `tokens` tokens.

        A longer document is a block of its own; it is a view too, so it takes no memory. What
        was read is given back to the page cache on the way.
        """
        last = self.documents if last is None else last
        mapped = 0
        while first < last:
            most = range(first + 1, min(last, first + _BLOCK_DOCUMENTS) + 1)
            limit = self.tokens_before(first) + tokens
            end = first + max(1, bisect_right(most, limit, key=self.tokens_before))
            block = self.block(first, end)
            yield block
            first = end
            mapped += block.ids.nbytes
            if mapped > _MAPPED:
                self._give_back()
                mapped = 0

    def _give_back(self) -> None:
        """Let go of mapped pages, which count as this process's memory; views stay valid."""
        for source in self._maps:
            source.madvise(mmap.MADV_DONTNEED)

    def _begin(self, sequence: int) -> int:
        """First token of a sequence; of the one after the last: the number of tokens."""
        if sequence == self.sequences:
            return self.tokens
        return int(self.offsets[sequence]) // self.dtype.itemsize

    def _check(self, size: int) -> None:
        index, item, end = self.paths.idx, self.dtype.itemsize, 0
        for start in range(0, self.sequences, _BLOCK):
            lengths = self.lengths[start : start + _BLOCK].astype(np.int64)
            ends = np.cumsum(lengths) * item + end
            wrong = np.flatnonzero(
                (lengths < 0) | (self.offsets[start : start + _BLOCK] != ends - lengths * item)
            )
            if wrong.size:
                raise DataError(
                    f"the .idx is damaged: sequence {start + int(wrong[0]):,} does not begin where "
                    "the one before it ends",
                    where=index,
                    fix=_AGAIN,
                )
            end = int(ends[-1])
        if size != end:
            raise DataError(
                f"{size:,} bytes, but the .idx says {end // item:,} tokens of {item} bytes, "
                f"{end:,} bytes",
                where=self.paths.bin,
                fix=_AGAIN,
            )
        self._check_borders()
        self._give_back()

    def _check_borders(self) -> None:
        borders, index = self.borders, self.paths.idx
        if (int(borders[0]), int(borders[-1])) != (0, self.sequences):
            raise DataError(
                f"the .idx is damaged: documents from sequence {int(borders[0]):,} to "
                f"{int(borders[-1]):,} of {self.sequences:,}",
                where=index,
                fix=_AGAIN,
            )
        for start in range(0, self.documents, _BLOCK):
            falls = np.flatnonzero(np.diff(borders[start : start + _BLOCK + 1]) < 0)
            if falls.size:
                raise DataError(
                    f"the .idx is damaged: document {start + int(falls[0]):,} ends before it "
                    "begins",
                    where=index,
                    fix=_AGAIN,
                )


def _open(path: Path) -> mmap.mmap | None:
    """Map a whole file; an empty one cannot be mapped."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return None
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _part(source: mmap.mmap | None, dtype: DTypeLike, offset: int, count: int) -> NDArray[Any]:
    """A read-only array over a part of a file."""
    if source is None or count == 0:
        return np.empty(0, dtype=dtype)
    return np.frombuffer(source, dtype=dtype, count=count, offset=offset)
