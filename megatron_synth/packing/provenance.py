"""The side table: where document i of a packed corpus came from."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from megatron_synth.runs.atomic import disk_errors

_ROWS = 65_536
_CHARACTERS = 16 << 20
"""A row group ends at the first row with which it holds so many rows or characters."""
_NAMES = ("id", "source_id", "method")

Column = Sequence[str | None]


class ProvenanceWriter:
    """Writes `id`, `source_id`, `method` of each document, in order, to a Parquet file.

    Attributes:
        rows: Documents so far.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._path = path
        self._schema = pa.schema([(name, pa.string()) for name in _NAMES])
        self._columns: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
        self._characters = 0
        self.rows = 0
        with disk_errors(path):
            self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")

    def add(self, ids: Column, source_ids: Column | None, methods: Column | None) -> None:
        """Append the next documents; None is a column of nothing but None."""
        given = (ids, source_ids, methods)
        full = [[None] * len(ids) if values is None else values for values in given]
        for row in zip(*full, strict=True):
            for column, value in zip(self._columns, row, strict=True):
                column.append(value)
                self._characters += len(value) if value else 0
            if len(self._columns[0]) == _ROWS or self._characters >= _CHARACTERS:
                self._flush()
        self.rows += len(ids)

    def __enter__(self) -> "ProvenanceWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with disk_errors(self._path):
            if error is None:
                self._flush()
            self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        arrays = [_string_array(column) for column in self._columns]
        with disk_errors(self._path):
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._columns = ([], [], [])
        self._characters = 0


def _string_array(values: Sequence[str | None]) -> Any:
    """The values as Arrow keeps them; `pa.array` would import pandas, which takes 0.3 s."""
    import pyarrow as pa

    data = [b"" if value is None else value.encode() for value in values]
    offsets = np.zeros(len(data) + 1, dtype=np.int32)
    np.cumsum([len(item) for item in data], out=offsets[1:])
    present = np.array([value is not None for value in values], dtype=bool)
    valid = np.packbits(present, bitorder="little")
    buffers = [pa.py_buffer(valid), pa.py_buffer(offsets), pa.py_buffer(b"".join(data))]
    return pa.Array.from_buffers(pa.string(), len(data), buffers)
