"""Find an indexed dataset on disk, and read the head of its `.idx`."""

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_synth.config import DataError
from megatron_synth.packing import layout

_AGAIN = "Copy the pair of files again, or pack the corpus again."


@dataclass(frozen=True)
class Header:
    """What the head of an `.idx` says; the file has the size that follows from it.

    Attributes:
        dtype: Of the ids in the `.bin`, little-endian.
        sequences: Number of sequences.
        documents: Number of documents.
        modes: Whether each sequence has a mode (multimodal datasets).
    """

    dtype: "np.dtype[np.generic]"
    sequences: int
    documents: int
    modes: bool

    @property
    def offsets_at(self) -> int:
        """Byte at which the sequences' offsets begin."""
        return layout.HEADER.size + 4 * self.sequences

    @property
    def borders_at(self) -> int:
        """Byte at which the documents' borders begin."""
        return layout.HEADER.size + layout.SEQUENCE_BYTES * self.sequences

    @property
    def modes_at(self) -> int:
        """Byte at which the sequences' modes begin."""
        return self.borders_at + layout.BORDER_BYTES * (self.documents + 1)


def path_prefix(prefix: str | Path) -> Path:
    """The path without `.bin`/`.idx`: `prefix` itself, or `prefix_text_document`.

    Raises:
        DataError: There is no such indexed dataset, or half of one.
    """
    base = Path(prefix)
    candidates = [base, layout.with_key(base)] if base.name else []
    for candidate in candidates:
        index, data = (Path(f"{candidate}.{ending}") for ending in ("idx", "bin"))
        if index.is_file() and data.is_file():
            return candidate
        if index.is_file() or data.is_file():
            missing = data if index.is_file() else index
            raise DataError(f"half of an indexed dataset: {missing.name} is missing", where=missing)
    there = sorted(p.stem for p in base.parent.glob("*.idx")) if base.parent.is_dir() else []
    near = difflib.get_close_matches(base.name, there, n=1, cutoff=0.3) or there[:8]
    raise DataError(
        "no indexed dataset (.bin and .idx) under this prefix",
        where=prefix,
        fix=f"There: {', '.join(near)}." if near else "Pack the corpus first, or check the path.",
    )


def read_header(index: Path) -> Header:
    """Read the head of an `.idx` and compare it with the file's size.

    Raises:
        DataError: Not an `.idx` that Megatron reads, cut short, or longer than it says.
    """
    with index.open("rb") as handle:
        head = handle.read(layout.HEADER.size)
    if len(head) < layout.HEADER.size:
        raise DataError("not an indexed dataset: too short", where=index)
    magic, version, code, sequences, borders = layout.HEADER.unpack(head)
    if magic != layout.MAGIC or version != layout.VERSION:
        raise DataError("not a Megatron indexed dataset (version 1)", where=index)
    if code not in layout.DTYPES:
        known = ", ".join(f"{number} {name}" for number, name in sorted(layout.DTYPES.items()))
        raise DataError(
            f"not a Megatron indexed dataset: dtype code {code} is unknown (known: {known})",
            where=index,
        )
    dtype = np.dtype(layout.DTYPES[code]).newbyteorder("<")
    header = Header(dtype, sequences, max(0, borders - 1), False)
    size = index.stat().st_size
    if size < header.modes_at:
        raise DataError(
            f"the .idx is cut short: {size:,} bytes, {header.modes_at:,} by its head "
            f"({sequences:,} sequences, {borders - 1:,} documents)",
            where=index,
            fix=_AGAIN,
        )
    if borders == 0:
        raise DataError("the .idx is damaged: no document borders", where=index, fix=_AGAIN)
    if size not in (header.modes_at, header.modes_at + sequences):
        raise DataError(
            f"the .idx is damaged: {size:,} bytes, {header.modes_at:,} by its head "
            f"({sequences:,} sequences, {borders - 1:,} documents)",
            where=index,
            fix=_AGAIN,
        )
    return Header(dtype, sequences, borders - 1, modes=size > header.modes_at)
