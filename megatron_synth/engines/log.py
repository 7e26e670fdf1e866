"""The request log: what makes generation exactly-once across kills (DESIGN, Exactly once)."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from megatron_synth.config import DataError, RunError
from megatron_synth.engines.requests import Completion
from megatron_synth.runs import fsync_folder, get_logger
from megatron_synth.runs.atomic import disk_errors

_LOG = get_logger(__name__)

_HEADER, _ASKED, _FAILED, _ANSWERED = b"H", b"Q", b"F", b"A"
_CHECKSUM_DIGITS = 16


class RequestLog:
    """An append-only file of requests asked, failed and answered, for one shard.

    One record a line: checksum (xxh3, 64 bits), kind, key, JSON. A record is written through to
    the operating system at once, so that it survives `kill -9`; `commit` makes all records
    written so far survive a power cut as well, and only then do they count. What a kill cut
    short is the last record: it is removed when the file is opened again. A key is answered
    once: its answer is never replaced.

    Args:
        path: The file; created where absent.
        run: Names everything that the answers depend on. A log of another run is refused.
        group: Commit when so many answers wait,
        seconds: or when the first of them has waited so long. Measured on a local disk: an
            fsync takes about 3 ms, so four a second cost about 1 % of the time.
        lock_seconds: How long to wait for another process to let go of the file (after a kill,
            the old writer may need a moment to end).

    Raises:
        DataError: The log is damaged before its last record, or belongs to another run.
        RunError: Another process keeps writing to it, or the disk is full.
    """

    def __init__(
        self,
        path: Path,
        run: str,
        *,
        group: int = 32,
        seconds: float = 0.25,
        lock_seconds: float = 60.0,
    ) -> None:
        self.path = path
        self.asked_again = 0
        self._group = group
        self._seconds = seconds
        self._places: dict[str, tuple[int, int]] = {}
        self._asked: set[str] = set()
        self._waiting: list[Completion] = []
        self._waiting_since = 0.0
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(self._file, path, lock_seconds)
            self._end = self._recover(run)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> "RequestLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        """Keys that have an answer, in the order in which the answers came."""
        return iter(self._places)

    @property
    def waiting(self) -> int:
        """Answers that are written but not committed yet."""
        return len(self._waiting)

    def read(self, key: str) -> Completion:
        """The answer to `key`.

        Raises:
            KeyError: It has none.
        """
        place, size = self._places[key]
        fields = json.loads(_parse(os.pread(self._file, size, place))[2])
        return Completion(key=key, **{**fields, "token_ids": tuple(fields["token_ids"])})

    def ask(self, key: str) -> None:
        """Note that `key` is handed to the engine now."""
        if key in self._asked:
            self.asked_again += 1
        self._asked.add(key)
        self._append(_ASKED, key, None)

    def note_failure(self, key: str) -> None:
        """Note that the engine failed at `key`, which is no answer: to ask it anew is no loss."""
        self._asked.discard(key)
        self._append(_FAILED, key, None)

    def append(self, completion: Completion) -> None:
        """Write an answer; it counts after the next `commit`.

        Raises:
            ValueError: The key has an answer already.
        """
        if completion.key in self._places:
            raise ValueError(f"{completion.key} has an answer already")
        # Not `asdict`, which copies every single token id: a third of what an answer costs here.
        fields = {name: value for name, value in vars(completion).items() if name != "key"}
        place, size = self._append(_ANSWERED, completion.key, fields)
        self._places[completion.key] = (place, size)
        if not self._waiting:
            self._waiting_since = time.monotonic()
        self._waiting.append(completion)

    def commit(self) -> list[Completion]:
        """Put everything written on the disk; the answers that count from now on."""
        if self._waiting:
            with disk_errors(self.path):
                os.fdatasync(self._file)
        committed, self._waiting = self._waiting, []
        return committed

    def commit_if_due(self) -> list[Completion]:
        """`commit` when enough answers wait, or when they have waited long enough."""
        full = len(self._waiting) >= self._group
        late = self._waiting and time.monotonic() - self._waiting_since >= self._seconds
        return self.commit() if full or late else []

    def close(self) -> None:
        """Commit and let the file go."""
        if self._file >= 0:
            try:
                self.commit()
            finally:
                os.close(self._file)
                self._file = -1

    def _append(self, kind: bytes, key: str, content: Any) -> tuple[int, int]:
        line = _line(kind, key, content)
        with disk_errors(self.path):
            try:
                _write_all(self._file, line, self._end)
            except OSError:
                os.ftruncate(self._file, self._end)  # leave no half record behind
                raise
        place, self._end = self._end, self._end + len(line)
        return place, len(line)

    def _recover(self, run: str) -> int:
        """Read all records, cut off a torn end; the file's length then."""
        end = 0
        torn = False
        with os.fdopen(os.dup(self._file), "rb") as lines:
            lines.seek(0)
            for line in lines:
                try:
                    kind, key, content = _parse(line)
                except ValueError:
                    torn = True
                    continue
                if torn:
                    raise DataError(
                        f"the record at byte {end} is damaged, and whole ones follow it",
                        where=self.path,
                        fix="A kill cannot do this; a failing disk can. Move the file away to "
                        "generate this shard anew.",
                    )
                if end == 0:
                    self._check_header(kind, content, run)
                elif kind == _ASKED:
                    self.asked_again += key in self._asked
                    self._asked.add(key)
                elif kind == _FAILED:
                    self._asked.discard(key)
                elif key in self._places:
                    raise DataError(f"{key} is answered twice", where=self.path)
                else:
                    self._places[key] = (end, len(line))
                end += len(line)
        if torn:
            _LOG.info("%s: removed a record that was cut short", self.path)
        with disk_errors(self.path):
            os.ftruncate(self._file, end)
            if end == 0:
                header = _line(_HEADER, "log", {"run": run})
                _write_all(self._file, header, 0)
                end = len(header)
            os.fsync(self._file)
            fsync_folder(self.path.parent)
        return end

    def _check_header(self, kind: bytes, content: bytes, run: str) -> None:
        if kind != _HEADER:
            raise DataError("not a request log: it has no header", where=self.path)
        found = json.loads(content)["run"]
        if found != run:
            raise DataError(
                f"this log belongs to another run ({found}, not {run}): other documents, another "
                "model or other settings",
                where=self.path,
                fix="Choose another output folder, or move this file away.",
            )


def _line(kind: bytes, key: str, content: Any) -> bytes:
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    body = b"%s %s %s" % (kind, key.encode("ascii"), text.encode("ascii"))
    return b"%016x %s\n" % (xxhash.xxh3_64_intdigest(body), body)


def _parse(line: bytes) -> tuple[bytes, str, bytes]:
    """Kind, key and JSON of a record.

    Raises:
        ValueError: It is cut short or damaged.
    """
    checksum, body = line[:_CHECKSUM_DIGITS], line[_CHECKSUM_DIGITS + 1 : -1]
    if line[-1:] != b"\n" or checksum != b"%016x" % xxhash.xxh3_64_intdigest(body):
        raise ValueError("damaged record")
    kind, key, content = body.split(b" ", 2)
    return kind, key.decode("ascii"), content


def _write_all(file: int, data: bytes, place: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(file, data[written:], place + written)


def _lock(file: int, path: Path, seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= give_up:
                raise RunError(
                    "another process is writing to this request log",
                    where=path,
                    fix="Wait for it, or end it, then run the same command again.",
                ) from None
            time.sleep(0.1)
