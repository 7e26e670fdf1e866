"""What may stand beside a `.bin/.idx` pair: its `CorpusInfo` and its side table."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_synth.config import DataError
from megatron_synth.packing.info import CorpusInfo, load_info
from megatron_synth.packing.reader import IndexedReader
from megatron_synth.runs.atomic import disk_errors

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 65_536
_AGAIN = "Pack the corpus again."
_IDS = frozenset(("vocab_size", "eos_id", "bos_id"))  # integers that count nothing


def info_of(reader: IndexedReader) -> CorpusInfo | None:
    """The `.json` beside a dataset; None where there is none.

    Raises:
        DataError: It is damaged, or of another dataset.
    """
    path = reader.paths.info
    info = load_info(path)
    if info is None:
        return None
    said = (info.documents, info.tokens, info.dtype)
    if said != (reader.documents, reader.tokens, reader.dtype.name):
        raise DataError(
            f"says {info.tokens:,} tokens ({info.dtype}) in {info.documents:,} documents, the "
            f".idx holds {reader.tokens:,} ({reader.dtype.name}) in {reader.documents:,}",
            where=path,
            fix="The files are not of one packing: pack the corpus again.",
        )
    return info


def merged_info(infos: Sequence[tuple[Path, CorpusInfo]], content_hash: str) -> CorpusInfo:
    """The info of several datasets in one: counts are summed, the rest must be equal.

    Raises:
        DataError: Other tokenizers, or another choice of BOS.
    """
    values: dict[str, Any] = {"content_hash": content_hash}
    place, first = infos[0]
    for name in (field.name for field in dataclasses.fields(CorpusInfo)):
        found = [getattr(info, name) for _, info in infos]
        if name == "longest":
            values[name] = max(found)
        elif is_count(name, found[0]):
            values[name] = sum(found)
        elif name != "content_hash":
            values[name] = getattr(first, name)
            for (other, _), value in zip(infos, found, strict=True):
                if value != values[name]:
                    raise DataError(
                        f"{name} is {value}, but {values[name]} in {place}",
                        where=other,
                        fix="Only what one tokenizer packed in one way can be merged.",
                    )
    return CorpusInfo(**values)


def is_count(name: str, value: object) -> bool:
    """Whether a field of `CorpusInfo` is a count, which adds up over datasets."""
    return isinstance(value, int) and name not in _IDS and name != "longest"


class SideTable:
    """Reads the side table of a dataset from front to back.

    Raises:
        DataError: Not Parquet, or not one row a document.
    """

    def __init__(self, path: Path, documents: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._path = path
        try:
            self._file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"not a Parquet file: {error}", where=path, fix=_AGAIN) from error
        self._damage = (OSError, pa.ArrowException)
        if self._file.metadata.num_rows != documents:
            raise DataError(
                f"{self._file.metadata.num_rows:,} rows for {documents:,} documents",
                where=path,
                fix="The files are not of one packing: pack the corpus again.",
            )
        self.schema: pa.Schema = self._file.schema_arrow.remove_metadata()
        self._batches = self._file.iter_batches(batch_size=_ROWS)
        self._rest: Any = None

    def take(self, count: int) -> Iterator["pa.RecordBatch"]:
        """The next `count` rows."""
        while count:
            if self._rest is None or not self._rest.num_rows:
                self._rest = self._next()
            part = self._rest.slice(0, count)
            self._rest = self._rest.slice(part.num_rows)
            count -= part.num_rows
            yield part

    def rows(self, first: int, last: int) -> list[dict[str, Any]]:
        """Rows `first` to `last` - 1; reads only the row groups that hold them."""
        found: list[dict[str, Any]] = []
        begin = 0
        for group in range(self._file.num_row_groups):
            end = begin + self._file.metadata.row_group(group).num_rows
            low, high = max(first, begin), min(last, end)
            if low < high:
                try:
                    table = self._file.read_row_group(group)
                except self._damage as error:
                    raise self._damaged(error) from error
                found += table.slice(low - begin, high - low).to_pylist()
            begin = end
        return found

    def _next(self) -> Any:
        try:
            return next(self._batches)
        except self._damage as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"damaged Parquet file: {error}", where=self._path, fix=_AGAIN)


def write_side_table(path: Path, schema: "pa.Schema", rows: Iterable["pa.RecordBatch"]) -> None:
    """Write rows in groups of 65,536, so that the file depends on the rows alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with disk_errors(path), pq.ParquetWriter(path, schema, compression="zstd") as writer:
        group: list[pa.RecordBatch] = []
        size = 0
        for batch in rows:
            left = batch.replace_schema_metadata(None)
            while left.num_rows:
                group.append(left.slice(0, _ROWS - size))
                size += group[-1].num_rows
                left = left.slice(group[-1].num_rows)
                if size == _ROWS:
                    writer.write_table(pa.Table.from_batches(group, schema), _ROWS)
                    group, size = [], 0
        if size:
            writer.write_table(pa.Table.from_batches(group, schema), _ROWS)
