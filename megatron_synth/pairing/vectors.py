"""Embeddings as they lie on disk: float16 rows in a memory map, taken as float32 by the block."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from megatron_synth.config import DataError

BLOCK = 16_384
"""Rows converted to float32 at a time."""

Vectors = NDArray[np.float16] | NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """The documents of some embeddings that have a direction.

    Attributes:
        vectors: float16 or float32 [n, d], unit rows or rows of zeros; may be a memory map.
        numbers: int64 [rows], the rows that are not zero, ascending; None where all are.
    """

    vectors: Vectors
    numbers: NDArray[np.int64] | None

    @classmethod
    def of(cls, vectors: Vectors) -> Self:
        """Leave out rows of zeros: documents without a direction, which have no neighbours."""
        parts = [
            np.flatnonzero(np.any(vectors[start : start + BLOCK], axis=1)) + start
            for start in range(0, len(vectors), BLOCK)
        ]
        numbers = np.concatenate([np.empty(0, np.int64), *parts])
        return cls(vectors, None if len(numbers) == len(vectors) else numbers)

    def __len__(self) -> int:
        return len(self.vectors) if self.numbers is None else len(self.numbers)

    @property
    def dimension(self) -> int:
        """Of the vectors."""
        return int(self.vectors.shape[1])

    def take(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows at `places` of 0 to `len(self) - 1`: float32 [places, d]."""
        return np.asarray(self.vectors[self.documents(places)], np.float32)

    def documents(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which row of `vectors` stands at each of `places`."""
        return places if self.numbers is None else self.numbers[places]

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first place, float32 [at most BLOCK, d]) of all rows in turn."""
        for start in range(0, len(self), BLOCK):
            yield start, self.take(np.arange(start, min(start + BLOCK, len(self))))


def load_vectors(path: Path) -> Vectors:
    """Open unit vectors, float16 or float32 [n, d], as a memory map; every row is looked at.

    Raises:
        DataError: No such file, not a matrix of floats, fewer than two rows, or rows whose norm is
            neither 1 nor 0 (0 marks a document without a direction: it has no neighbours).
    """
    vectors = open_vectors(path)
    if len(vectors) < 2:
        raise DataError(f"{len(vectors)} documents cannot form a pair", where=path)
    check_unit_norm(vectors, path)
    return vectors


def open_vectors(path: Path) -> Vectors:
    """The memory map alone; only the file's header is read.

    Raises:
        DataError: No such file, or not a matrix of floats.
    """
    if not path.is_file():
        raise DataError("no such embeddings file", where=path)
    try:
        vectors: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"no numpy array: {error}", where=path) from error
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise DataError(
            f"must be a matrix of floats [documents, dimension], is {vectors.dtype} "
            f"{vectors.shape}",
            where=path,
        )
    return vectors


def check_unit_norm(vectors: Vectors, path: Path) -> None:
    """Refuse rows whose norm is neither 1 nor 0.

    Raises:
        DataError: There are such rows; `path` is named.
    """
    wrong = 0
    for start in range(0, len(vectors), BLOCK):
        block = np.asarray(vectors[start : start + BLOCK], np.float32)
        norms = np.sqrt(np.einsum("nd,nd->n", block, block))
        bad = ~((np.abs(norms - 1) < 0.02) | (norms == 0))
        if bad.any() and not wrong:
            first, norm = start + int(bad.argmax()), float(norms[bad.argmax()])
        wrong += int(bad.sum())
    if wrong:
        raise DataError(
            f"{wrong} of {len(vectors)} rows do not have unit norm (row {first}: {norm:.4f})",
            where=path,
            fix="Divide each row by its norm: similarity is the inner product.",
        )
