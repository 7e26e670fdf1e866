"""Generated documents by their source, from disk: corpora may be larger than memory.

All records are copied into one plain file; in memory stay 20 bytes a document: the hash of its
source's id and where its record lies.
"""

from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from megatron_synth.config import DataError
from megatron_synth.corpus import Document
from megatron_synth.runs.atomic import disk_errors
from megatron_synth.synthesis.pieces import CUT


class Member(msgspec.Struct, frozen=True):
    """What a megadoc needs of a generated document; see `corpus.Document`."""

    id: str
    text: str
    source_id: str
    method: str | None
    generation: int | None
    round: int | None
    generator: str | None
    prompt: str | None
    tokens: int
    """Of its text, as its generator counted them; 0 where nobody did."""
    notes: dict[str, int]
    """What its metadata says of `KEPT`, where it is an integer."""


KEPT = (CUT, "splits", "request")
"""What is kept of the metadata: place and number of rationales (`latent_thoughts`), number of the
request."""


class Groups:
    """The generated documents of each source.

    Args:
        generated: All of them, in any order; each must name its source.
        path: A file for the records; it is made.

    Attributes:
        count: Generated documents.

    Raises:
        DataError: A document has no `source_id`.
        RunError: The disk is full.
    """

    def __init__(self, generated: Iterable[Document], path: Path) -> None:
        hashes, ends = array("Q"), array("Q", [0])
        with disk_errors(path), path.open("wb") as file:
            for document in generated:
                if document.source_id is None:
                    raise DataError(
                        f"the generated document {document.id!r} names no source_id",
                        fix="Give the documents that a method of synthesis wrote.",
                    )
                record = msgspec.json.encode(_member(document))
                file.write(record)
                hashes.append(_hash(document.source_id))
                ends.append(ends[-1] + len(record))
        every = np.frombuffer(hashes, dtype=np.uint64)
        # Stable: the records of a source are read in the order in which they lie.
        self._order: NDArray[np.int64] = np.argsort(every, kind="stable")
        self._hashes = every[self._order]
        self._ends = np.frombuffer(ends, dtype=np.uint64)
        self._file: IO[bytes] = path.open("rb")
        self.count = len(every)

    def of(self, source_id: str) -> list[Member]:
        """The generated documents of a source, in the order in which they came.

        Raises:
            DataError: Two of them have the same id.
        """
        wanted = np.uint64(_hash(source_id))
        first, last = (
            int(np.searchsorted(self._hashes, wanted, side=side)) for side in ("left", "right")
        )
        members = [self._read(int(number)) for number in self._order[first:last]]
        members = [member for member in members if member.source_id == source_id]
        if len({member.id for member in members}) != len(members):
            raise DataError(
                f"two generated documents of {source_id!r} have the same id",
                fix="Is one file given twice? Make the ids differ, such as by their round.",
            )
        return members

    def close(self) -> None:
        """Close the file, which the caller removes."""
        self._file.close()

    def _read(self, number: int) -> Member:
        start, end = int(self._ends[number]), int(self._ends[number + 1])
        self._file.seek(start)
        return msgspec.json.decode(self._file.read(end - start), type=Member)


class SeenIds:
    """Tells whether an id came before, at the end of the stream; 16 bytes an id."""

    def __init__(self) -> None:
        self._high, self._low = array("Q"), array("Q")

    def add(self, name: str) -> None:
        """Take an id."""
        digest = xxhash.xxh3_128_intdigest(name.encode("utf-8", "surrogatepass"))
        self._high.append(digest >> 64)
        self._low.append(digest & 0xFFFF_FFFF_FFFF_FFFF)

    def count_repeated(self) -> int:
        """How many of the ids had come before."""
        high = np.frombuffer(self._high, dtype=np.uint64)
        low = np.frombuffer(self._low, dtype=np.uint64)
        order = np.lexsort((low, high))
        high, low = high[order], low[order]
        return int(((high[1:] == high[:-1]) & (low[1:] == low[:-1])).sum())


def _member(document: Document) -> Member:
    assert document.source_id is not None
    return Member(
        document.id,
        document.text,
        document.source_id,
        document.method,
        document.generation,
        document.round,
        document.generator,
        document.prompt,
        (document.token_counts or {}).get("text", 0),
        {name: document.metadata[name] for name in KEPT if _is_integer(document, name)},
    )


def _is_integer(document: Document, name: str) -> bool:
    value = document.metadata.get(name)
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))
