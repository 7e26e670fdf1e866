"""Write Megatron's `.bin` and `.idx`, byte for byte as `IndexedDatasetBuilder` does."""

import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import xxhash
from numpy.typing import DTypeLike, NDArray

from megatron_synth.packing.layout import CODES, HEADER, MAGIC, VERSION
from megatron_synth.runs.atomic import disk_errors

_SMALL_VOCABULARY = 65_500
_BLOCK = 1 << 20
_COPY = 1 << 22

Counts = Sequence[int] | NDArray[np.integer]


def token_dtype(vocab_size: int) -> "np.dtype[np.integer]":
    """Megatron's rule (`DType.optimal_dtype`): uint16 under 65,500 tokens, else int32."""
    return np.dtype(np.uint16 if vocab_size < _SMALL_VOCABULARY else np.int32)


class IndexedWriter:
    """Appends documents to `bin_path`, then writes `idx_path`.

    A document is one sequence of ids, or several, or none (an empty text). The files are written
    in place: give temporary names and rename them afterwards. Memory: one block; where not every
    document is one sequence, 4 bytes a document.

    Attributes:
        dtype: Of the ids on disk.
        documents: Documents so far.
        sequences: Sequences so far.
        tokens: Ids so far.
        longest: Ids of the longest sequence.
    """

    def __init__(self, bin_path: Path, idx_path: Path, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self.documents = self.sequences = self.tokens = self.longest = 0
        self._paths = (bin_path, idx_path)
        self._hash = xxhash.xxh3_128()
        # Sequences of each document, from the first document on that is not one sequence.
        self._counts: array[int] | None = None
        with disk_errors(bin_path):
            self._bin: IO[bytes] = bin_path.open("wb")
        with disk_errors(idx_path):
            self._idx: IO[bytes] = idx_path.open("w+b")
            self._idx.write(bytes(HEADER.size))

    @property
    def bin_hash(self) -> str:
        """Hash of what the `.bin` holds so far, equal to `hash_file` of it (32 hex digits)."""
        return self._hash.hexdigest()

    def add(
        self, ids: NDArray[np.integer], lengths: Counts, sequences: Counts | None = None
    ) -> None:
        """Append documents.

        Args:
            ids: Integers [n], all sequences one after another.
            lengths: Ids of each sequence; their sum is n.
            sequences: Sequences of each document; None where each document is one.
        """
        sizes = np.asarray(lengths, dtype=np.int32)
        assert int(sizes.sum(dtype=np.int64)) == len(ids)
        data = np.ascontiguousarray(ids, dtype=self.dtype).data
        with disk_errors(self._paths[0]):
            self._bin.write(data)
        self._hash.update(data)
        self._add_index(sizes, sequences)

    def append(self, bin_path: Path, lengths: Counts, sequences: Counts | None = None) -> None:
        """Append all documents of another dataset of the same dtype; see `add`."""
        sizes = np.asarray(lengths, dtype=np.int32)
        tokens = int(sizes.sum(dtype=np.int64))
        with bin_path.open("rb") as source, disk_errors(self._paths[0]):
            while data := source.read(_COPY):
                self._bin.write(data)
                self._hash.update(data)
            assert source.tell() == tokens * self.dtype.itemsize
        self._add_index(sizes, sequences)

    def finish(self, *, durable: bool = True) -> None:
        """Write the index; `durable` forces both files to disk."""
        with disk_errors(self._paths[0]):
            _close(self._bin, durable)
        with disk_errors(self._paths[1]):
            self._write_offsets()
            self._write_borders()
            self._idx.seek(0)
            code = CODES[self.dtype.name]
            self._idx.write(HEADER.pack(MAGIC, VERSION, code, self.sequences, self.documents + 1))
            _close(self._idx, durable)

    def __enter__(self) -> "IndexedWriter":
        return self

    def __exit__(self, *_: object) -> None:
        # After an error there may be something left to write, and still no room for it.
        try:
            with disk_errors(self._paths[0]):
                self._bin.close()
        finally:
            with disk_errors(self._paths[1]):
                self._idx.close()

    def _add_index(self, lengths: NDArray[np.int32], counts: Counts | None) -> None:
        with disk_errors(self._paths[1]):
            self._idx.write(lengths.data)
        if counts is not None:
            assert sum(counts) == len(lengths)
            if self._counts is None and any(count != 1 for count in counts):
                self._counts = array("i", [1]) * self.documents
        if self._counts is not None:
            self._counts.extend(counts if counts is not None else [1] * len(lengths))
        self.sequences += len(lengths)
        self.documents += len(lengths) if counts is None else len(counts)
        self.tokens += int(lengths.sum(dtype=np.int64))
        self.longest = max(self.longest, int(lengths.max(initial=0)))

    def _write_offsets(self) -> None:
        """Byte offset of each sequence, int64, from the lengths that stand in the file."""
        offset = 0
        for start in range(0, self.sequences, _BLOCK):
            count = min(_BLOCK, self.sequences - start)
            self._idx.seek(HEADER.size + 4 * start)
            lengths = np.frombuffer(self._idx.read(4 * count), dtype=np.int32)
            ends = np.cumsum(lengths.astype(np.int64) * self.dtype.itemsize) + offset
            self._idx.seek(HEADER.size + 4 * self.sequences + 8 * start)
            self._idx.write(np.concatenate([[offset], ends[:-1]]).astype(np.int64).data)
            offset = int(ends[-1])
        self._idx.seek(HEADER.size + 12 * self.sequences)

    def _write_borders(self) -> None:
        """The number of sequences up to each document's end, int64, after a 0."""
        self._idx.write(bytes(8))
        done = 0
        for start in range(0, self.documents, _BLOCK):
            size = min(_BLOCK, self.documents - start)
            counts = np.ones(size, dtype=np.int64)
            if self._counts is not None:
                counts = np.array(self._counts[start : start + size], dtype=np.int64)
            ends = np.cumsum(counts) + done
            self._idx.write(ends.data)
            done = int(ends[-1])


def _close(file: IO[bytes], durable: bool) -> None:
    file.flush()
    if durable:
        os.fsync(file.fileno())
    file.close()
