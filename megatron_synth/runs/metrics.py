"""`metrics.jsonl`: one JSON object a line; the truth that every other display mirrors."""

import json
from pathlib import Path
from typing import Any

from megatron_synth.runs.atomic import atomic_write


class MetricsLog:
    """Appends records with a `step` to a JSONL file.

    On resume, pass the step that the checkpoint holds: records after it, and a half-written last
    line, are removed, so that no step stands in the file twice.
    """

    def __init__(self, path: Path, *, resume_step: int = 0) -> None:
        self.path = path
        kept = [r for r in read_metrics(path) if r["step"] <= resume_step]
        with atomic_write(path) as handle:
            handle.writelines(json.dumps(record) + "\n" for record in kept)
        self._handle = path.open("a", encoding="utf-8")

    def write(self, step: int, **values: Any) -> None:
        """Append one record and flush it to the operating system."""
        self._handle.write(json.dumps({"step": step, **values}) + "\n")
        self._handle.flush()

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole records of a metrics file; an absent file has none."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:  # the line that a kill cut short: always the last one
            break
    return records
