"""Write documents: JSONL (plain, gzip, zstd) and Parquet, whole or not at all."""

import gzip
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import zstandard

from megatron_synth.config import DataError
from megatron_synth.corpus.document import Document, dump_json, to_record, to_row
from megatron_synth.corpus.files import JSON_SUFFIXES, SUPPORTED, is_parquet
from megatron_synth.runs import atomic_write

_ZSTD_LEVEL = 3
_GZIP_LEVEL = 6
_ROWS = 4096


class DocumentSink(Protocol):
    """Takes documents one by one."""

    count: int

    def write(self, document: Document) -> None:
        """Add one document."""


def write_documents(path: Path, documents: Iterable[Document]) -> int:
    """Write all documents and give their number; the kind of file follows from the name.

    Equal documents in equal order give equal bytes. Nothing stands under `path` until all of
    them are on disk.

    Raises:
        DataError: The name has no supported ending.
        RunError: The disk is full.
    """
    with document_writer(path) as sink:
        for document in documents:
            sink.write(document)
    return sink.count


@contextmanager
def document_writer(path: Path) -> Iterator[DocumentSink]:
    """Open a writer; the file gets its name when the block ends without an error."""
    if not path.name.endswith(SUPPORTED):
        raise DataError(
            "not a kind of file that can be written", where=path, fix=f"Kinds: {SUPPORTED}."
        )
    for left in path.parent.glob(f".{path.name}.*.tmp"):  # of a try that was killed
        left.unlink(missing_ok=True)
    with atomic_write(path, "wb") as file, ExitStack() as stack:
        if is_parquet(path):
            parquet = _ParquetSink(file)
            stack.callback(parquet.close)
            yield parquet
        else:
            assert path.name.endswith(JSON_SUFFIXES)
            yield _JsonSink(stack.enter_context(_packed(path, file)))


@contextmanager
def _packed(path: Path, file: IO[bytes]) -> Iterator[IO[bytes]]:
    if path.suffix == ".gz":
        # No name and no time inside: equal content, equal bytes.
        with gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as packed:
            yield packed  # type: ignore[misc]
    elif path.suffix == ".zst":
        compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
        with compressor.stream_writer(file, closefd=False) as packed:
            yield packed
    else:
        yield file


def _dump(record: dict[str, Any], *, ensure_ascii: bool) -> str:
    return dump_json(record, ensure_ascii=ensure_ascii, separators=(",", ":"))


class _JsonSink:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.count = 0

    def write(self, document: Document) -> None:
        record = to_record(document)
        try:
            line = _dump(record, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:  # a lone surrogate in the metadata: JSON can escape it
            line = _dump(record, ensure_ascii=True).encode("ascii")
        self._file.write(line + b"\n")
        self.count += 1


class _ParquetSink:
    def __init__(self, file: IO[bytes]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = dict.fromkeys(("generation", "round", "seed"), pa.int64())
        kinds["parts"] = pa.list_(pa.string())
        names = to_row(Document("", "")).keys()
        self._schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
        self._table = pa.Table
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self.count = 0

    def write(self, document: Document) -> None:
        self._rows.append(to_row(document))
        self.count += 1
        if len(self._rows) == _ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._table.from_pylist(self._rows, schema=self._schema))
            self._rows = []
