"""How far a step is: written by the step, read by whoever shows it."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

Item = TypeVar("Item")

PROGRESS = ".progress.json"
"""Name of the file in a step's folder."""

_WRITE_EVERY_SECONDS = 0.5


class ProgressState(BaseModel):
    """What a step has done so far."""

    phase: str = ""
    """What is being done now, in a few words: `tokenizing`, `starting vLLM`."""
    done: float = 0
    total: float | None = None
    unit: str = ""
    rate: float | None = None
    """Units a second, over this try."""
    seconds_left: float | None = None
    note: str = ""
    """Something worth seeing beside the bar: `loss 4.31`."""

    @property
    def share(self) -> float | None:
        """Share done, 0 to 1, where the total is known."""
        return None if not self.total else min(1.0, self.done / self.total)


class Progress:
    """Tells how far the work is, at most twice a second: to a small file, to whoever shows it.

    Args:
        path: The file; None keeps the state in memory only (library use, ranks other than 0).
        on_change: Called with each state that is written, such as to draw a bar.
    """

    def __init__(
        self, path: Path | None = None, on_change: Callable[[ProgressState], None] | None = None
    ) -> None:
        self.path = path
        self._on_change = on_change
        self.state = ProgressState()
        self._started = time.monotonic()
        self._start_done = 0.0
        self._written = 0.0

    def phase(self, name: str, total: float | None = None, unit: str = "", done: float = 0) -> None:
        """Begin a new phase; `done` is what an earlier try has finished already."""
        if self.state.phase:
            self._write()  # how far the phase before came
        self.state = ProgressState(phase=name, total=total, unit=unit, done=done)
        self._started = time.monotonic()
        self._start_done = done
        self._write()

    def update(self, done: float, note: str = "") -> None:
        """Say how much of the phase is done."""
        now = time.monotonic()
        elapsed = now - self._started
        gained = done - self._start_done
        rate = gained / elapsed if elapsed > 0 and gained > 0 else None
        total = self.state.total
        left = (total - done) / rate if rate and total is not None else None
        self.state = self.state.model_copy(
            update={"done": done, "rate": rate, "seconds_left": left, "note": note}
        )
        if now - self._written >= _WRITE_EVERY_SECONDS:
            self._write()

    def track(
        self, items: Iterable[Item], name: str, total: float | None = None, unit: str = ""
    ) -> Iterator[Item]:
        """Yield `items`, counting each as one unit of the phase `name`."""
        self.phase(name, total, unit)
        done = 0
        for done, item in enumerate(items, start=1):
            yield item
            self.update(done)
        self.state = self.state.model_copy(update={"done": done, "seconds_left": 0.0})
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        if self._on_change is not None:
            self._on_change(self.state)
        if self.path is None:
            return
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        temporary.write_text(self.state.model_dump_json(), encoding="utf-8")
        temporary.replace(self.path)


def read_progress(folder: Path) -> ProgressState | None:
    """The state of the step that works in `folder`; None where it has not said anything yet."""
    try:
        text = (folder / PROGRESS).read_text(encoding="utf-8")
        return ProgressState.model_validate(json.loads(text))
    except (OSError, ValueError, ValidationError):
        return None
