"""Show a `Progress` to a person: a bar on a terminal, one line every few seconds in a log."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from megatron_synth.config.units import format_count
from megatron_synth.runs.logs import get_logger
from megatron_synth.runs.progress import Progress, ProgressState

_log = get_logger(__name__)


@contextmanager
def shown_progress(stream: TextIO | None = None, every_seconds: float = 10.0) -> Iterator[Progress]:
    """A `Progress` that is shown while the block runs: done, total, share, rate, time left.

    On a terminal it is a bar that is drawn again in place, and log lines appear above it; elsewhere
    the package's log gets a line every `every_seconds` and one for each phase that ended. It is
    drawn from inside `Progress.update`, at most twice a second: no thread, so the block may fork.

    Args:
        stream: Where a bar would be drawn; by default stderr.
        every_seconds: Least time between two lines of a log.
    """
    stream = stream or sys.stderr
    if stream.isatty():
        with _bar(stream) as progress:
            yield progress
    else:
        lines = _Lines(every_seconds)
        progress = Progress(on_change=lines.show)
        yield progress
        lines.show(progress.state)
        lines.end()


class _Lines:
    """Writes lines to the log: while a phase lasts, and when it has ended."""

    def __init__(self, every_seconds: float) -> None:
        self._every = every_seconds
        self._state: ProgressState | None = None
        self._began = self._last = time.monotonic()

    def show(self, state: ProgressState) -> None:
        now = time.monotonic()
        if self._state is None or state.phase != self._state.phase:
            self.end()
            self._began = self._last = now
        elif now - self._last >= self._every:
            self._last = now
            _log.info("%s", describe_progress(state))
        self._state = state

    def end(self) -> None:
        if self._state is not None and self._state.phase:
            done = self._state.model_copy(update={"seconds_left": None})
            took = format_seconds(time.monotonic() - self._began)
            _log.info("%s; took %s", describe_progress(done), took)
        self._state = None


@contextmanager
def _bar(stream: TextIO) -> Iterator[Progress]:
    from rich.console import Console
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    console = Console(file=stream)
    live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)

    def draw(state: ProgressState) -> None:
        table = Table.grid(padding=(0, 2))
        table.add_row(
            ProgressBar(total=1.0, completed=state.share or 0.0, width=24),
            describe_progress(state),
        )
        live.update(table, refresh=True)

    with live, _log_lines_above(stream):
        yield Progress(on_change=draw)


@contextmanager
def _log_lines_above(stream: TextIO) -> Iterator[None]:
    """Rich prints what goes to `sys.stderr` above the bar; log handlers hold the old one."""
    root = logging.getLogger("megatron_synth")
    moved = [
        h for h in root.handlers if isinstance(h, logging.StreamHandler) and h.stream is stream
    ]
    for handler in moved:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler in moved:
            handler.setStream(stream)


def describe_progress(state: ProgressState) -> str:
    """A progress state in one line: phase, done of total, share, rate, time left, note."""
    parts = [state.phase or "starting"]
    if state.total:
        amount = f"{_short(state.done)} of {_short(state.total)} {state.unit}"
        parts.append(f"{amount.strip()} ({state.share:.0%})")
    elif state.done:
        parts.append(f"{_short(state.done)} {state.unit}".strip())
    if state.rate:
        parts.append(f"{_short(state.rate)} {state.unit}/s".replace(" /s", "/s"))
    if state.seconds_left is not None:
        parts.append(f"{format_seconds(state.seconds_left)} left")
    if state.note:
        parts.append(state.note)
    return ", ".join(parts)


def _short(number: float) -> str:
    return format_count(round(number) if number >= 100 else round(number, 1 if number >= 1 else 2))


def format_seconds(seconds: float) -> str:
    """A duration for people: `8 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
