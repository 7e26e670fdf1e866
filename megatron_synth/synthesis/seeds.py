"""The organic documents on disk, shared by all workers through the page cache."""

import json
import math
import platform
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_synth.config import DataError
from megatron_synth.corpus import Document
from megatron_synth.runs import exclusive, hash_file, hash_json, write_json
from megatron_synth.tokens import Tokenizer

_BATCH = 1024
_INFO = "seeds.json"
_PARTS = ("texts", "text_ends", "names", "name_ends", "lengths")


class SeedStore:
    """Texts, names and token lengths of the source documents, memory-mapped.

    Attributes:
        folder: Where it lies.
        lengths: int64[documents], tokens of each, without EOS.
        fingerprint: Hash of all of it, as it was when the store was built.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._texts = np.load(folder / "texts.npy", mmap_mode="r")
        self._names = np.load(folder / "names.npy", mmap_mode="r")
        self._text_ends = np.load(folder / "text_ends.npy")
        self._name_ends = np.load(folder / "name_ends.npy")
        self.lengths: NDArray[np.int64] = np.load(folder / "lengths.npy")
        info = json.loads((folder / _INFO).read_text(encoding="utf-8"))
        self.fingerprint: str = info["fingerprint"]

    def __len__(self) -> int:
        return len(self.lengths)

    def text(self, row: int) -> str:
        """Text of a document."""
        return _decode(self._texts, self._text_ends, row)

    def name(self, row: int) -> str:
        """Id of a document."""
        return _decode(self._names, self._name_ends, row)


def _decode(data: NDArray[np.uint8], ends: NDArray[np.int64], row: int) -> str:
    return bytes(data[ends[row] : ends[row + 1]]).decode("utf-8")


def build_seeds(documents: Iterable[Document], tokenizer: Tokenizer, folder: Path) -> SeedStore:
    """Put `documents` into `folder`, which appears when all is written.

    A store that stands there already is opened as it is: the caller names the folder by what it
    is made from. Documents without text are left out. Of several processes that want the same
    store one builds it, and the others wait.

    Raises:
        DataError: There is no document with text.
    """
    if not (folder / _INFO).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f"{folder.name}.lock")
        with exclusive(lock, str(folder), patience=math.inf, remove=True):
            if not (folder / _INFO).is_file():
                _build(documents, tokenizer, folder)
    return SeedStore(folder)


def _build(documents: Iterable[Document], tokenizer: Tokenizer, folder: Path) -> None:
    # A lock file may hold within a node only: each node has a name of its own to write under.
    temporary = folder.with_name(f"{folder.name}.{platform.node()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    count = _write(documents, tokenizer, temporary)
    if not count:
        shutil.rmtree(temporary)
        raise DataError(
            "there are no seed documents with text",
            fix="Check the corpus that synthesis reads: it is empty.",
        )
    fingerprint = hash_json([hash_file(temporary / f"{part}.npy") for part in _PARTS])
    info = {"documents": count, "tokenizer": tokenizer.fingerprint, "fingerprint": fingerprint}
    write_json(temporary / _INFO, info)
    if not (folder / _INFO).is_file():
        shutil.rmtree(folder, ignore_errors=True)
    try:
        temporary.rename(folder)
    except OSError:
        if not (folder / _INFO).is_file():
            raise
        shutil.rmtree(temporary)  # another node was faster; equal documents make an equal store


def _write(documents: Iterable[Document], tokenizer: Tokenizer, folder: Path) -> int:
    text_ends, name_ends = [0], [0]
    lengths: list[int] = []
    with (folder / "texts.raw").open("wb") as texts, (folder / "names.raw").open("wb") as names:
        for batch in _batches(d for d in documents if d.text):
            lengths += map(len, tokenizer.encode_batch([d.text for d in batch]))
            for document in batch:
                text_ends.append(text_ends[-1] + texts.write(document.text.encode("utf-8")))
                name_ends.append(name_ends[-1] + names.write(document.id.encode("utf-8")))
    for part in ("texts", "names"):
        raw = folder / f"{part}.raw"
        empty = not raw.stat().st_size
        array = np.empty(0, np.uint8) if empty else np.memmap(raw, dtype=np.uint8, mode="r")
        np.save(folder / f"{part}.npy", array)
        raw.unlink()
    for name, values in (("text_ends", text_ends), ("name_ends", name_ends), ("lengths", lengths)):
        np.save(folder / f"{name}.npy", np.asarray(values, dtype=np.int64))
    return len(lengths)


def _batches(documents: Iterable[Document]) -> Iterator[Sequence[Document]]:
    waiting = iter(documents)
    while batch := list(islice(waiting, _BATCH)):
        yield batch
