import io
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_synth.experiments.graph import State, Status, Step
from megatron_synth.launch import display
from megatron_synth.launch.local import Running
from megatron_synth.runs import Progress


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    process = subprocess.Popen([sys.executable, "-c", ""])
    step = Step("train.repeat", "train", {}, {})
    with (tmp_path / "log").open("wb") as handle:
        yield Running(step, tmp_path, tmp_path / "log", process, handle)
    process.wait()


def statuses(running: Running) -> dict[str, Status]:
    done = Status(Step("pack", "pack", {}, {}), State.DONE)
    return {"pack": done, "train.repeat": Status(running.step, State.READY)}


def half_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that has trained 600 of 1,000 tokens, 10 a second in this try."""
    clock = [time.monotonic()]
    with monkeypatch.context() as patched:
        patched.setattr("megatron_synth.runs.progress.time.monotonic", lambda: clock[0])
        progress = Progress(folder / ".progress.json")
        progress.phase("training", total=1000, unit="tokens", done=500)
        clock[0] += 10
        progress.update(600)


def test_a_log_says_what_starts_then_share_rate_and_time_left_then_what_came_out(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    lines = display.LineDisplay(shown)
    lines.show(statuses(running), [running])
    half_done(running.work, monkeypatch)
    lines.show(statuses(running), [running])  # too soon after the last line
    assert len(shown.getvalue().splitlines()) == 1
    monkeypatch.setattr(display, "_LINE_EVERY_SECONDS", 0.0)
    lines.show(statuses(running), [running])
    started, going = shown.getvalue().splitlines()
    assert "[ 1/2] train.repeat: started" in started
    for word in ("[ 1/2] train.repeat: training", "(60%)", "10 tokens/s", "40 s left"):
        assert word in going


def test_a_terminal_shows_the_same_beside_a_bar(
    running: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    half_done(running.work, monkeypatch)
    with display.LiveDisplay() as live:
        live.show(statuses(running), [running])
    drawn = capsys.readouterr().err
    for word in ("1 of 2 steps done", "train.repeat", "(60%)", "40 s left"):
        assert word in drawn
