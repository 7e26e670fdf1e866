"""The organic documents as token ids on disk, shared by all workers through the page cache."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from megatron_synth.config import DataError
from megatron_synth.corpus import Document
from megatron_synth.runs import hash_file, hash_json, write_json
from megatron_synth.tokens import Tokenizer

_BATCH = 1024
_INFO = "seeds.json"


class SeedStore:
    """Token ids and names of the seed documents, memory-mapped.

    Attributes:
        folder: Where it lies.
        lengths: int64[documents], tokens of each, without EOS.
        fingerprint: Hash of all of it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ids = np.load(folder / "ids.npy", mmap_mode="r")
        self._names = np.load(folder / "names.npy", mmap_mode="r")
        self._id_ends = np.load(folder / "id_ends.npy")
        self._name_ends = np.load(folder / "name_ends.npy")
        self.lengths: NDArray[np.int64] = np.diff(self._id_ends)
        self.fingerprint = hash_json([hash_file(folder / f"{part}.npy") for part in _PARTS])

    def __len__(self) -> int:
        return len(self.lengths)

    def ids(self, row: int) -> list[int]:
        """Token ids of a document, without BOS or EOS."""
        ids: list[int] = self._ids[self._id_ends[row] : self._id_ends[row + 1]].tolist()
        return ids

    def name(self, row: int) -> str:
        """Id of a document."""
        return bytes(self._names[self._name_ends[row] : self._name_ends[row + 1]]).decode("utf-8")


_PARTS = ("ids", "id_ends", "names", "name_ends")


def build_seeds(documents: Iterable[Document], tokenizer: Tokenizer, folder: Path) -> SeedStore:
    """Encode `documents` into `folder`, which appears when all is written.

    A store that stands there already is opened as it is: the caller names the folder by what it
    is made from. Documents without text are left out.

    Raises:
        DataError: There is no document with text.
    """
    if not (folder / _INFO).is_file():
        temporary = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.mkdir(parents=True)
        count = _write(documents, tokenizer, temporary)
        if not count:
            raise DataError(
                "there are no seed documents with text",
                fix="Check the corpus that synthesis reads: it is empty.",
            )
        write_json(temporary / _INFO, {"documents": count, "tokenizer": tokenizer.fingerprint})
        temporary.rename(folder)
    return SeedStore(folder)


def _write(documents: Iterable[Document], tokenizer: Tokenizer, folder: Path) -> int:
    id_ends, name_ends = [0], [0]
    with (folder / "ids.raw").open("wb") as ids, (folder / "names.raw").open("wb") as names:
        for batch in _batches(d for d in documents if d.text):
            for document, encoded in zip(
                batch, tokenizer.encode_batch([d.text for d in batch]), strict=True
            ):
                id_ends.append(id_ends[-1] + len(encoded))
                name_ends.append(name_ends[-1] + _put(names, document.id.encode("utf-8")))
                ids.write(np.asarray(encoded, dtype=np.int32).tobytes())
    for part, kind in (("ids", np.int32), ("names", np.uint8)):
        raw = folder / f"{part}.raw"
        array = np.memmap(raw, dtype=kind, mode="r") if raw.stat().st_size else np.empty(0, kind)
        np.save(folder / f"{part}.npy", array)
        raw.unlink()
    np.save(folder / "id_ends.npy", np.asarray(id_ends, dtype=np.int64))
    np.save(folder / "name_ends.npy", np.asarray(name_ends, dtype=np.int64))
    return len(id_ends) - 1


def _put(handle: IO[bytes], data: bytes) -> int:
    return handle.write(data)


def _batches(documents: Iterable[Document]) -> Iterator[Sequence[Document]]:
    waiting = iter(documents)
    while batch := list(islice(waiting, _BATCH)):
        yield batch
