"""Lists of what an import left out and why: JSON lines, whole or not there."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from megatron_synth.runs import atomic_write


class RecordList:
    """Takes records one by one."""

    def __init__(self, file: IO[str] | None) -> None:
        self._file = file

    def add(self, **record: Any) -> None:
        """Add one record; what is None is left out."""
        if self._file is not None:
            kept = {name: value for name, value in record.items() if value is not None}
            self._file.write(json.dumps(kept) + "\n")


@contextmanager
def record_list(path: Path | None) -> Iterator[RecordList]:
    """Open a list; the file gets its name when the block ends without an error.

    Args:
        path: The JSONL file; None takes records and keeps none.
    """
    if path is None:
        yield RecordList(None)
        return
    for left in path.parent.glob(f".{path.name}.*.tmp"):  # of a try that was killed
        left.unlink(missing_ok=True)
    with atomic_write(path) as file:
        yield RecordList(file)
