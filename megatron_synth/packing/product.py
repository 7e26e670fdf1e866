"""A dataset in the making: temporary names until all of it is whole."""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_synth.config import ConfigError, RunError
from megatron_synth.packing.beside import write_side_table
from megatron_synth.packing.indexed import IndexedWriter
from megatron_synth.packing.info import CorpusInfo, CorpusPaths, info_to_json
from megatron_synth.packing.reader import Block, IndexedReader
from megatron_synth.runs import Progress, exclusive, fsync_folder, hash_file, hash_json, write_json
from megatron_synth.runs.atomic import disk_errors

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


@dataclass(frozen=True)
class Made:
    """What was made.

    Attributes:
        stem: Path without `.bin`.
        documents, sequences, tokens: Counts.
        content_hash: As in `CorpusInfo`.
        info: The `.json`; None where it could not be known, and none was written.
        provenance: Whether there is a side table.
    """

    stem: Path
    documents: int
    sequences: int
    tokens: int
    content_hash: str
    info: CorpusInfo | None
    provenance: bool

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "prefix": str(self.stem),
            "documents": self.documents,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "content_hash": self.content_hash,
            "info": None if self.info is None else info_to_json(self.info),
            "provenance": self.provenance,
        }


class Product:
    """Writes one dataset under temporary names; `publish` gives the names."""

    def __init__(self, stem: Path) -> None:
        self.final = CorpusPaths(stem)
        self._temporary = self.final.temporary
        self.documents = self.sequences = self.tokens = self.longest = 0
        self.content_hash = ""
        self._has_table = False

    def write(self, blocks: Iterable[Block], dtype: "np.dtype[Any]", progress: Progress) -> None:
        """Write `.bin` and `.idx`, in one pass; modes follow as stock Megatron writes them."""
        paths = self._temporary
        modes_path = paths.stem.with_name(paths.stem.name + ".modes")
        with disk_errors(modes_path), ExitStack() as stack:
            writer = stack.enter_context(IndexedWriter(paths.bin, paths.idx, dtype))
            modes = None
            for block in blocks:
                counts = None if block.sequences is None else block.sequences.tolist()
                writer.add(block.ids, block.lengths, counts)
                if block.modes is not None:
                    modes = modes or stack.enter_context(modes_path.open("wb"))
                    modes.write(block.modes.tobytes())
                progress.update(progress.state.done + block.ids.nbytes / 1e6)
            writer.finish()
            if modes is not None:
                with disk_errors(paths.idx), paths.idx.open("ab") as idx:
                    modes.close()
                    with modes_path.open("rb") as source:
                        shutil.copyfileobj(source, idx)
                    idx.flush()
                    os.fsync(idx.fileno())
                modes_path.unlink()
        self.documents, self.sequences = writer.documents, writer.sequences
        self.tokens, self.longest = writer.tokens, writer.longest
        self.content_hash = hash_json([writer.bin_hash, hash_file(paths.idx)])

    def write_table(self, schema: "pa.Schema", rows: Iterable["pa.RecordBatch"]) -> None:
        """Write the side table."""
        write_side_table(self._temporary.provenance, schema, rows)
        self._has_table = True

    def publish(self, info: CorpusInfo | None) -> Made:
        """Name the files, the info last."""
        final = self.final
        final.name_from(self._temporary, provenance=self._has_table)
        fsync_folder(final.stem.parent)
        if info is not None:
            write_json(final.info, info_to_json(info))
        return Made(
            final.stem,
            self.documents,
            self.sequences,
            self.tokens,
            self.content_hash,
            info,
            self._has_table,
        )

    def discard(self) -> None:
        """Remove what lies under temporary names."""
        stem = self._temporary.stem
        for ending in (".bin", ".idx", ".provenance.parquet", ".modes"):
            stem.with_name(stem.name + ending).unlink(missing_ok=True)


@contextmanager
def products(stems: Sequence[Path], lock: Path, size: int) -> Iterator[list[Product]]:
    """Products of one job, which shares `lock` (a hidden file, which stays) with no other job.

    Args:
        stems: Their final paths, in one folder, which is made.
        lock: Name of the job: two with the same name would write the same files.
        size: Bytes that all of them will take, about; the free space is looked at first.

    Raises:
        RunError: No room, or another process makes the same files.
    """
    folder = lock.parent
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    made = [Product(stem) for stem in stems]
    with exclusive(folder / f".{lock.name}.lock", str(lock), patience=0):
        try:
            for product in made:
                product.discard()
            free = shutil.disk_usage(folder).free
            if free < size:
                raise RunError(
                    f"{size / 1e9:,.2f} GB are needed, {free / 1e9:,.2f} GB are free",
                    where=folder,
                    fix="Nothing was written. Make room there, or choose another place.",
                )
            yield made
        finally:
            for product in made:
                product.discard()


def refuse_own_input(readers: Sequence[IndexedReader], stems: Sequence[Path]) -> None:
    """ConfigError where a dataset would be written over one that it is made from."""
    inputs = {reader.prefix.resolve() for reader in readers}
    for stem in stems:
        if stem.resolve() in inputs:
            raise ConfigError(
                "the result would replace what it is made from",
                where=stem,
                fix="Choose another name for the result.",
            )


def size_of(reader: IndexedReader) -> int:
    """Bytes on disk of a dataset and its side table."""
    files = (reader.paths.bin, reader.paths.idx, reader.paths.provenance)
    return sum(path.stat().st_size for path in files if path.is_file())
