"""Read documents: JSONL (plain, gzip, zstd) and Parquet, from files, folders and globs."""

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from megatron_synth.config import DataError
from megatron_synth.corpus.document import BadRow, Document, from_record
from megatron_synth.corpus.files import is_parquet, list_files, row_stem, shown_path
from megatron_synth.corpus.lines import Broken, OnBytes, TooLong, read_lines
from megatron_synth.corpus.quarantine import Quarantine
from megatron_synth.runs import get_logger

_ROWS = 1024

_log = get_logger(__name__)


def read_documents(
    source: str | Path,
    *,
    quarantine: Quarantine | None = None,
    text_column: str = "text",
    id_column: str = "id",
    on_bytes: OnBytes | None = None,
) -> Iterator[Document]:
    """Yield the documents of a file, folder or glob, in order, in bounded memory.

    Args:
        source: See `list_files`.
        quarantine: Takes bad rows and counts good ones; the caller calls its `check`. Without
            one the first bad row is an error, as is right for files that we wrote ourselves.
        text_column: Key of the text.
        id_column: Key of the id; rows without one are named `FILE:LINE`.
        on_bytes: Called with the bytes read from disk, for progress.

    Raises:
        DataError: Nothing to read, a Parquet file that cannot be opened, or a bad row without
            a quarantine.
    """
    for path in list_files(source):
        yield from _read_file(path, quarantine, (text_column, id_column), on_bytes)


def total_bytes(source: str | Path) -> int:
    """Bytes on disk of all files that `read_documents` would read."""
    return sum(path.stat().st_size for path in list_files(source))


def _read_file(
    path: Path, quarantine: Quarantine | None, columns: tuple[str, str], on_bytes: OnBytes | None
) -> Iterator[Document]:
    rows = parquet_rows(path, on_bytes) if is_parquet(path) else _json_rows(path, on_bytes)
    stem = row_stem(path)
    text_column, id_column = columns
    for line, record, raw in rows:
        try:
            if isinstance(record, BadRow):
                raise record
            document = from_record(
                record, default_id=f"{stem}:{line}", text_column=text_column, id_column=id_column
            )
        except BadRow as bad:
            if quarantine is None:
                raise DataError(
                    f"line {line}: {bad}", where=path, fix="This file is damaged: make it again."
                ) from bad
            quarantine.add(str(path), line, str(bad), raw)
            continue
        if quarantine is not None:
            quarantine.good += 1
        yield document


def _json_rows(path: Path, on_bytes: OnBytes | None) -> Iterator[tuple[int, object, bytes]]:
    """Yield (line number, parsed row or BadRow, raw bytes); blank lines are no rows."""
    for number, line in enumerate(read_lines(path, on_bytes), start=1):
        if isinstance(line, (TooLong, Broken)):
            yield number, BadRow(line.reason), b""
        elif line and not line.isspace():
            yield number, parse_json(line), line


def parse_json(line: bytes) -> object:
    """Parse one JSON text; the answer is a `BadRow` where it is none."""
    try:
        return _DECODER.decode(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return BadRow("not valid UTF-8")
    except (ValueError, RecursionError):
        return BadRow("not valid JSON")


def _integer(digits: str) -> int | Decimal:
    """An integer; Python's own cannot have more than 4,300 digits when it is parsed."""
    try:
        return int(digits)
    except ValueError:
        return Decimal(digits)


_DECODER = json.JSONDecoder(parse_int=_integer)


def parquet_rows(
    path: Path,
    on_bytes: OnBytes | None = None,
    row_groups: Sequence[int] | None = None,
    columns: Sequence[str] | None = None,
) -> Iterator[tuple[int, object, bytes]]:
    """Yield (row number, row or BadRow, b"") of the chosen row groups and columns, or of all.

    Rows are counted from 1 in the first of the row groups. Damage costs its own row group at
    most: each row of it that cannot be read is a bad row.

    Raises:
        DataError: The file cannot be opened.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"not a readable Parquet file: {error}", where=path, fix="Remove it or mend it."
        ) from error
    share = path.stat().st_size / max(1, file.metadata.num_rows)
    groups = list(range(file.num_row_groups)) if row_groups is None else list(row_groups)
    if columns is not None:
        columns = [name for name in dict.fromkeys(columns) if name in file.schema_arrow.names]
    end = 0
    with file:
        for group in groups:
            number, end = end, end + file.metadata.row_group(group).num_rows
            try:
                # Buffering ahead would let damage anywhere take what is whole with it.
                for batch in file.iter_batches(_ROWS, [group], columns):
                    for record in _batch_rows(batch):
                        number += 1
                        yield number, record, b""
                    if on_bytes is not None:
                        on_bytes(int(share * batch.num_rows))
            except (pa.ArrowException, OSError) as error:
                reason = (str(error).splitlines() or ["unreadable"])[0]
                _log.warning("%s: row group %d is damaged: %s", shown_path(path), group + 1, reason)
                if on_bytes is not None:
                    on_bytes(int(share * (end - number)))
                for line in range(number + 1, end + 1):
                    yield line, BadRow(f"this row group is damaged: {reason}"), b""


def _batch_rows(batch: Any) -> Sequence[object]:
    try:
        rows: list[object] = batch.to_pylist()
        return rows
    except UnicodeDecodeError:
        return [_single_row(batch.slice(i, 1)) for i in range(batch.num_rows)]


def _single_row(batch: Any) -> object:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError:
        return BadRow("not valid UTF-8")
