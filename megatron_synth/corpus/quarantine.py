"""Bad rows: set aside with file, line and reason; counted; too many fail the step."""

import json
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Self

from megatron_synth.config import DataError
from megatron_synth.corpus.files import shown_path
from megatron_synth.runs.atomic import disk_errors

_SHOWN = 120


class Quarantine:
    """Collects bad rows in a JSONL file: `file`, `line`, `reason`, `start` of the row.

    The file is written anew by each try, so a killed try leaves nothing behind that counts.

    Args:
        path: The file; None only counts.
        limit: Share of bad rows, 0 to 1, above which `check` fails.
        handle: Open text file to write to instead; the caller closes it.

    Its methods raise `RunError` where the disk is full.

    Attributes:
        good: Rows that were documents.
        reasons: Bad rows by reason.
    """

    def __init__(
        self, path: Path | None = None, limit: float = 0.01, handle: IO[str] | None = None
    ) -> None:
        self.path = path
        self.limit = limit
        self.good = 0
        self.reasons: Counter[str] = Counter()
        self._first: tuple[str, int, str] | None = None
        self._handle = handle
        self._is_own = handle is None
        if path is not None and handle is None:
            with disk_errors(path):
                self._handle = path.open("w", encoding="utf-8")

    @property
    def bad(self) -> int:
        """Rows set aside so far."""
        return self.reasons.total()

    def add(self, file: str, line: int, reason: str, row: bytes | str = b"") -> None:
        """Set one row aside; `line` counts from 1 (rows of a Parquet file as well)."""
        file = shown_path(file)
        self.reasons[reason] += 1
        if self._first is None:
            self._first = (file, line, reason)
        self.note(file, line, reason, row)

    def note(self, file: str, line: int, reason: str, row: bytes | str = b"") -> None:
        """List a row that is set aside for another reason than being bad: it is not counted."""
        if self._handle is not None:
            place = {"file": shown_path(file), "line": line}
            entry = {**place, "reason": reason, "start": row_start(row)}
            with self._writing():
                self._handle.write(json.dumps(entry) + "\n")  # ASCII: it may hold surrogates

    def check(self) -> None:
        """Fail if too large a share was bad.

        Raises:
            DataError: With the counts, the first bad row and where the others are.
        """
        rows = self.good + self.bad
        if not self.bad or self.bad <= self.limit * rows:
            return
        if self._handle is not None:
            with self._writing():
                self._handle.flush()
        assert self._first is not None
        file, line, reason = self._first
        common = "; ".join(f"{n:,} × {why}" for why, n in self.reasons.most_common(3))
        listed = f" All of them are listed in {self.path}." if self.path else ""
        raise DataError(
            f"{self.bad:,} of {rows:,} rows are no documents ({common}); the limit is "
            f"{self.limit:.1%}. First: line {line}, {reason}",
            where=file,
            fix=f"Mend or remove these rows, or raise quarantine_limit.{listed}",
        )

    def close(self) -> None:
        """Flush and close the file, unless it is the caller's."""
        handle, self._handle = self._handle, None
        if handle is not None and self._is_own:
            with self._writing():
                handle.close()

    def _writing(self) -> AbstractContextManager[None]:
        """A full disk is a `RunError`; what happens to the caller's own file, the caller says."""
        return disk_errors(self.path) if self.path is not None else nullcontext()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def row_start(row: bytes | str) -> str:
    """What is shown of a bad row."""
    start = row[:_SHOWN]
    return start.decode("utf-8", "replace") if isinstance(start, bytes) else start
