"""What pairs are made of: the table of pairs, and the packed documents that it points to."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from megatron.core.datasets.indexed_dataset import IndexedDataset
from numpy.typing import NDArray

from megatron_synth.config import DataError
from megatron_synth.packing.beside import info_of
from megatron_synth.packing.reader import IndexedReader


class PairDocuments:
    """The documents of a packed corpus, one sequence each.

    It can be pickled: another process opens the files for itself.

    Args:
        path: Path prefix, `_text_document` included.
        eos_id: The token that ends documents.

    Attributes:
        bos_id: The token that every document begins with, if packing says so.
    """

    def __init__(self, path: Path, eos_id: int) -> None:
        self._dataset = IndexedDataset(str(path))
        self._path, self._eos = path, eos_id
        info = info_of(IndexedReader(path, check=False))
        self.bos_id: int | None = None if info is None else info.bos_id

    def lengths(self) -> NDArray[np.integer]:
        """Tokens of each document, EOS and BOS counted (0: it has no sequence); int32[documents].

        Raises:
            DataError: A document has several sequences.
        """
        sequences = np.diff(self._dataset.document_indices)
        several = int(np.count_nonzero(sequences > 1))
        if several:
            raise DataError(
                f"{several:,} of {len(sequences):,} documents have several sequences; pairs need "
                "at most one a document",
                where=self._path,
                fix="Pack the corpus again, one document a sequence.",
            )
        lengths = np.zeros(len(sequences), dtype=np.int32)
        lengths[sequences == 1] = self._dataset.sequence_lengths
        return lengths

    def tokens(self, index: int) -> NDArray[np.integer]:
        """Document `index` without its EOS; DataError where it lacks EOS, or BOS."""
        sequence = int(self._dataset.document_indices[index])
        tokens: NDArray[np.integer] = self._dataset.get(sequence)
        if tokens[-1] != self._eos:
            raise DataError(
                f"document {index} ends with token {int(tokens[-1])}, not with EOS ({self._eos})",
                where=self._path,
                fix="Pack the corpus with this tokenizer, an EOS after each document.",
            )
        if self.bos_id is not None and tokens[0] != self.bos_id:
            raise DataError(
                f"document {index} begins with token {int(tokens[0])}, not with BOS "
                f"({self.bos_id})",
                where=self._path,
                fix="The .json beside it says that it does: pack the corpus again.",
            )
        return tokens[:-1]


def read_pairs(path: Path, lengths: NDArray[np.integer]) -> NDArray[np.integer]:
    """Read the pairs of documents that have `lengths` tokens.

    Returns:
        int32[pairs, 2] (int64 from 2**31 documents on): d1, d2.

    Raises:
        DataError: No such table, or it is empty, or it names documents that are not there or that
            hold no tokens.
    """
    table = read_table(path, ["d1", "d2"])
    columns = [table[c].to_numpy() for c in ("d1", "d2")]
    if not table.num_rows:
        raise DataError("the pairs file is empty", where=path, fix="Lower the threshold.")
    low, high = int(min(c.min() for c in columns)), int(max(c.max() for c in columns))
    if low < 0 or high >= len(lengths):
        raise DataError(
            f"holds document {low if low < 0 else high}, the corpus has 0 to {len(lengths) - 1}",
            where=path,
            fix="Find pairs again on this corpus.",
        )
    kind = np.int32 if len(lengths) < 1 << 31 else np.int64
    pairs = np.empty((table.num_rows, 2), dtype=kind)
    for column, values in enumerate(columns):
        pairs[:, column] = values
    _refuse_empty(pairs, lengths, path)
    return pairs


def read_table(path: Path, columns: list[str] | None) -> pa.Table:
    """The table of pairs, `d1` and `d2` as int64; None reads its other columns too.

    Raises:
        DataError: No such table.
    """
    if not path.is_file():
        raise DataError("no such pairs file", where=path, fix="Find pairs first.")
    try:
        table = pq.read_table(path, columns=columns)
        for name in ("d1", "d2"):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, table[name].cast(pa.int64()))
    except (OSError, ValueError, KeyError) as error:  # Arrow's errors are ValueErrors and KeyErrors
        raise DataError(f"not a table with columns d1 and d2: {error}", where=path) from error
    return table


def _refuse_empty(pairs: NDArray[np.integer], lengths: NDArray[np.integer], path: Path) -> None:
    empty = np.unique(pairs[lengths[pairs] == 0])
    if len(empty):
        raise DataError(
            f"pairs {len(empty):,} documents that hold no tokens, the first is {int(empty[0]):,}",
            where=path,
            fix="Leave empty documents out, and find pairs again on this corpus.",
        )
