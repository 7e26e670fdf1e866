"""The documents of a corpus that a plan means, as the streams' arithmetic takes them."""

from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from megatron_synth.blending import kernels
from megatron_synth.blending.index_files import IndexFolder
from megatron_synth.blending.selection import choose
from megatron_synth.blending.sources import SourceConfig
from megatron_synth.packing.reader import IndexedReader

Int64s = NDArray[np.int64]
_EVERY = np.empty(0, dtype=np.int64)


class Index(NamedTuple):
    """An `.idx`, and how large its `.bin` is; arrays may be views of a memory map.

    Attributes:
        lengths: int32[sequences], tokens of each sequence.
        pointers: int64[sequences], byte at which each begins.
        borders: int64[documents + 1], first sequence of each document.
        tokens: Tokens in the `.bin`.
        token_bytes: Bytes of one.
    """

    lengths: NDArray[np.int32]
    pointers: NDArray[np.int64]
    borders: NDArray[np.int64]
    tokens: int
    token_bytes: int

    @classmethod
    def of(cls, reader: IndexedReader) -> Self:
        """The index of an open dataset; its map lives as long as these arrays."""
        return cls(
            reader.lengths, reader.offsets, reader.borders, reader.tokens, reader.dtype.itemsize
        )


class Documents:
    """Which documents there are, how long each is, and where it lies.

    Attributes:
        count: Documents that are meant.
        table: The same, for the compiled loops.
        content: Names the content, the selection and the order of the documents; None if unknown,
            and then nothing that is computed from them is kept on disk.
        folder: Where the node keeps what is computed from them.
    """

    def __init__(
        self,
        index: Index,
        *,
        chosen: Int64s | None = None,
        permuted: bool = True,
        content: str | None = None,
        folder: IndexFolder | None = None,
    ) -> None:
        documents = len(index.borders) - 1
        self.count = documents if chosen is None else len(chosen)
        self.content = content
        self.folder = folder or IndexFolder()
        self.table = kernels.Table(
            lengths=index.lengths,
            pointers=index.pointers,
            borders=index.borders,
            end=index.tokens * index.token_bytes,
            item=index.token_bytes,
            single=documents == len(index.lengths) and bool(kernels.is_single(index.borders)),
            chosen=_EVERY if chosen is None else chosen,
            size=self.count,
            permuted=permuted,
        )

    @property
    def tokens(self) -> int:
        """Tokens of the documents that are meant; looks at each."""
        return int(kernels.tokens_of(self.table))


def open_documents(
    index: Index,
    prefix: Path,
    source: SourceConfig | None,
    *,
    content: str | None,
    folder: IndexFolder | None = None,
) -> Documents:
    """The documents that `source` means.

    Args:
        index: The corpus's index.
        prefix: Path prefix of the corpus.
        source: Selection and order; None: all documents, permuted every epoch.
        content: Names content, selection and order together (see `sizes.measure`).
        folder: Where the node keeps indices.

    Raises:
        ConfigError, DataError: The files of selection or order do not fit the corpus.
    """
    folder = folder or IndexFolder()
    every = Documents(index, content=content, folder=folder)
    if source is None or (source.select is None and source.order is None):
        return every

    def make() -> Int64s:
        return choose(source, prefix, every.table)

    what = {"kind": "documents", "content": content}
    chosen = make() if content is None else folder.array(what, make)
    return Documents(
        index, chosen=chosen, permuted=source.order is None, content=content, folder=folder
    )
