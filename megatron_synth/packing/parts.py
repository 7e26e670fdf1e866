"""Pack one part of a corpus into files of its own, whole or not at all."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from megatron_synth.config import RunError
from megatron_synth.corpus.columns import Part, Rows, read_columns, texts_of
from megatron_synth.corpus.quarantine import row_start
from megatron_synth.packing.config import PackConfig
from megatron_synth.packing.encoder import Encoded, Encoder
from megatron_synth.packing.indexed import IndexedWriter
from megatron_synth.runs import hash_file
from megatron_synth.runs.atomic import disk_errors
from megatron_synth.tokens import Tokenizer
from megatron_synth.tokens.fast import FastEncoder

OnProgress = Callable[[int, int], None]
"""Called with the bytes read from disk and the ids written, since the last call."""


class KeyCounts(msgspec.Struct):
    """What was packed of one key; see `CorpusInfo`."""

    bin_hash: str = ""
    idx_hash: str = ""
    text_bytes: int = 0
    special_spellings: int = 0
    empty_documents: int = 0


class BadLine(msgspec.Struct):
    """A row that was set aside; `line` counts from 1 in its part."""

    line: int
    reason: str
    start: str


class PartRecord(msgspec.Struct):
    """`part-N.json`, written last: a part that has one is whole."""

    lines: int
    good: int
    keys: list[KeyCounts]
    bad: list[BadLine]
    rejected: list[BadLine]
    fast: bool
    provenance_hash: str = ""


class PartFiles:
    """Files of part `number` in the work folder."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        self.name = f"part-{number:06d}"

    @property
    def record(self) -> Path:
        """The `PartRecord`."""
        return self.folder / f"{self.name}.json"

    @property
    def provenance(self) -> Path:
        """Lines of JSON: columns of the side table, a block a line."""
        return self.folder / f"{self.name}.provenance"

    def stem(self, key: int) -> Path:
        """The dataset of the key with this index, without `.bin` or `.idx`."""
        return self.folder / f"{self.name}.{key}"

    def bin(self, key: int) -> Path:
        """Ids of the key with this index."""
        return self.folder / f"{self.name}.{key}.bin"

    def idx(self, key: int) -> Path:
        """Index of the key with this index."""
        return self.folder / f"{self.name}.{key}.idx"

    def read(self) -> PartRecord | None:
        """The record of a part that is whole, else None."""
        try:
            return msgspec.json.decode(self.record.read_bytes(), type=PartRecord)
        except (FileNotFoundError, msgspec.DecodeError):  # absent, or lost in a power cut
            return None

    def read_checked(self) -> PartRecord | None:
        """The record, if the files are what it says: also after a power cut."""
        record = self.read()
        if record is None:
            return None
        wanted = {self.provenance: record.provenance_hash}
        for k, counts in enumerate(record.keys):
            wanted |= {self.bin(k): counts.bin_hash, self.idx(k): counts.idx_hash}
        whole = all(path.is_file() and hash_file(path) == h for path, h in wanted.items())
        return record if whole else None


class PartPacker:
    """Packs parts, one after another.

    Args:
        tokenizer: The reference.
        fast: See `Encoder`.
        config: See `PackConfig`.
        folder: The work folder.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        fast: FastEncoder | None,
        config: PackConfig,
        folder: Path,
    ) -> None:
        self._tokenizer = tokenizer
        self._fast = fast
        self._config = config
        self._folder = folder
        self._encoder = Encoder(tokenizer, fast, config)

    def pack(self, number: int, part: Part, on_progress: OnProgress) -> None:
        """Write the files of one part, the record last.

        Raises:
            RunError: The disk is full, or the fast encoder is found to be wrong.
        """
        final = PartFiles(self._folder, number)
        # Another try that still ends its last part may write the same one: never the same file.
        own = PartFiles(self._folder, number)
        own.name = f".{final.name}.{os.getpid()}.tmp"
        count = len(self._config.keys)
        counters = [KeyCounts() for _ in range(count)]
        record = PartRecord(0, 0, counters, [], [], fast=self._fast is not None)
        read = 0

        def on_bytes(size: int) -> None:
            nonlocal read
            read += size

        with disk_errors(own.provenance), ExitStack() as stack:
            writers = [
                stack.enter_context(IndexedWriter(own.bin(k), own.idx(k), self._encoder.dtype))
                for k in range(count)
            ]
            table = stack.enter_context(own.provenance.open("wb"))
            checked = False
            for rows in read_columns(part, self._config.columns, on_bytes):
                if not checked and rows.lines:
                    self._check(rows)
                    checked = True
                before = sum(writer.tokens for writer in writers)
                self._add(rows, writers, record)
                if self._config.provenance:
                    table.write(_provenance_line(rows))
                on_progress(read, sum(writer.tokens for writer in writers) - before)
                read = 0
            for writer, counts in zip(writers, record.keys, strict=True):
                writer.finish(durable=False)
                counts.bin_hash = writer.bin_hash
        for k in range(count):
            own.bin(k).replace(final.bin(k))
            record.keys[k].idx_hash = hash_file(own.idx(k))
            own.idx(k).replace(final.idx(k))
        record.provenance_hash = hash_file(own.provenance)
        own.provenance.replace(final.provenance)
        with disk_errors(own.record):
            own.record.write_bytes(msgspec.json.encode(record))
            own.record.replace(final.record)

    def _add(self, rows: Rows, writers: list[IndexedWriter], record: PartRecord) -> None:
        record.lines = max(record.lines, rows.last_line)
        record.bad += [BadLine(line, why, row_start(raw)) for line, why, raw in rows.bad]
        encoded = [self._encoder.encode(values) for values in rows.texts]
        if self._config.special_tokens == "reject":
            spelled = {row for each in encoded for row in each.spelled}
            if spelled:
                record.rejected += self._reject(rows, spelled)
                encoded = [self._encoder.encode(values) for values in rows.texts]
        record.good += len(rows.lines)
        for writer, each, counts in zip(writers, encoded, record.keys, strict=True):
            writer.add(each.ids, each.lengths, each.sequences)
            _count(each, counts)

    def _reject(self, rows: Rows, spelled: set[int]) -> list[BadLine]:
        """Take the rows that spell special tokens out of `rows`."""
        rejected = []
        for row in sorted(spelled):
            texts = [text for column in rows.texts for text in texts_of(column[row])]
            found = next(filter(None, map(self._tokenizer.find_special, texts)), None)
            reason = f"spells the special token {found!r}"
            rejected.append(BadLine(rows.lines[row], reason, row_start(texts[0])))
        keep = [row for row in range(len(rows.lines)) if row not in spelled]
        columns: list[list[Any]] = [*rows.texts, rows.lines]
        if self._config.provenance:
            columns += [rows.ids, rows.source_ids, rows.methods]
        for column in columns:
            column[:] = [column[row] for row in keep]
        return rejected

    def _check(self, rows: Rows) -> None:
        """Once a part, compare the fast encoder with the reference on a document."""
        if self._fast is None:
            return
        text = texts_of(rows.texts[0][0])[:1]
        if not text or self._tokenizer.find_special(text[0]) is not None:
            return
        if self._fast.encode(text[0]).tolist() != self._tokenizer.encode(text[0]):
            raise RunError(
                "gigatoken gives other ids than the tokenizer itself, though not on the sample "
                "that was compared at the start",
                where=self._tokenizer.folder,
                fix="Run the same with --encoder tokenizer (in Python: encoder='tokenizer'): what "
                "gigatoken made is made again. And please report the text.",
            )


def _count(each: Encoded, counts: KeyCounts) -> None:
    counts.text_bytes += each.text_bytes
    counts.special_spellings += sum(each.spelled.values())
    counts.empty_documents += each.sequences.count(0) if each.sequences is not None else 0


def _provenance_line(rows: Rows) -> bytes:
    named = [
        line if name is None else None for line, name in zip(rows.lines, rows.ids, strict=True)
    ]
    columns: dict[str, list[Any]] = {
        "id": rows.ids,
        "source_id": rows.source_ids,
        "method": rows.methods,
        "line": named,
    }
    small: dict[str, Any] = {
        k: None if all(v is None for v in values) else values for k, values in columns.items()
    }
    return msgspec.json.encode([len(rows.lines), small]) + b"\n"
