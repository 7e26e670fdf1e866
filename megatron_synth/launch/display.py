"""What a person sees while a run goes on: a live table on a terminal, else lines in a log."""

import time
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from megatron_synth.config import format_count
from megatron_synth.experiments.graph import State, Status
from megatron_synth.launch.local import Running
from megatron_synth.runs import (
    Manifest,
    ProgressState,
    describe_progress,
    format_seconds,
    read_progress,
)

_LINE_EVERY_SECONDS = 15.0


class LineDisplay:
    """One line when a step starts or ends, and one every 15 s while it runs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last: dict[str, float] = {}

    def show(self, statuses: dict[str, Status], running: Sequence[Running]) -> None:
        """Print a line for every running step that was silent for long enough."""
        now = time.monotonic()
        for r in running:
            if r.step.name not in self._last:
                self._last[r.step.name] = now
                self._say(statuses, f"{r.step.name}: started")
            elif now - self._last[r.step.name] >= _LINE_EVERY_SECONDS:
                self._last[r.step.name] = now
                state = read_progress(r.work)
                if state is not None:
                    self._say(statuses, f"{r.step.name}: {describe_progress(state)}")

    def finished(self, manifest: Manifest) -> None:
        """Print what the step made and how long it took."""
        self._stream.write(
            f"{_clock()}   done    {manifest.step}: {format_seconds(manifest.seconds)}"
            f"{_headline(manifest)}\n"
        )
        self._stream.flush()

    def _say(self, statuses: dict[str, Status], text: str) -> None:
        done = sum(s.state is State.DONE for s in statuses.values())
        self._stream.write(f"{_clock()} [{done:2}/{len(statuses)}] {text}\n")
        self._stream.flush()


class LiveDisplay:
    """A table that is drawn again in place: use as a context manager, on a terminal only."""

    def __init__(self) -> None:
        self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)

    def __enter__(self) -> "LiveDisplay":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, statuses: dict[str, Status], running: Sequence[Running]) -> None:
        """Draw the running steps, and how many are done."""
        done = sum(s.state is State.DONE for s in statuses.values())
        table = Table.grid(padding=(0, 2))
        for r in running:
            state = read_progress(r.work) or ProgressState()
            bar = ProgressBar(total=1.0, completed=state.share or 0.0, width=24)
            table.add_row(Text(r.step.name, style="bold"), bar, describe_progress(state))
        heading = Text(f"{done} of {len(statuses)} steps done", style="dim")
        self._live.update(Group(heading, table))

    def finished(self, manifest: Manifest) -> None:
        """Leave one line above the table."""
        line = Text("✓ ", style="green")
        line.append(f"{manifest.step}  ", style="bold")
        line.append(f"{format_seconds(manifest.seconds)}{_headline(manifest)}", style="dim")
        self._live.console.print(line)


def _headline(manifest: Manifest) -> str:
    wanted = ("documents", "pairs", "tokens", "steps", "loss")
    found = [
        f"{format_count(manifest.counts[name])} {name}"
        if name != "loss"
        else f"loss {manifest.counts[name]:.3f}"
        for name in wanted
        if isinstance(manifest.counts.get(name), int | float)
    ]
    return f" ({', '.join(found)})" if found else ""


def _clock() -> str:
    return time.strftime("%H:%M:%S")
