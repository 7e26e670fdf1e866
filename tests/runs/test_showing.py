import contextlib
import io
import logging
import os
import re

import pytest

from megatron_synth.runs import describe_progress, format_seconds, log_to, shown_progress
from megatron_synth.runs.progress import ProgressState


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("megatron_synth.runs.progress.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def lines(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("megatron_synth"), "propagate", True)
    caplog.set_level(logging.INFO, "megatron_synth")
    return lambda: [r.getMessage() for r in caplog.records]


def test_a_log_gets_one_line_every_so_many_seconds_and_one_at_the_end(clock, lines):
    with shown_progress(io.StringIO(), every_seconds=10) as progress:
        progress.phase("packing", total=400, unit="MB")
        for second in range(1, 36):
            clock[0] += 1
            progress.update(10 * second)
    assert lines() == [
        "packing, 100 of 400 MB (25%), 10 MB/s, 30 s left",
        "packing, 200 of 400 MB (50%), 10 MB/s, 20 s left",
        "packing, 300 of 400 MB (75%), 10 MB/s, 10 s left",
        "packing, 350 of 400 MB (88%), 10 MB/s; took 35 s",
    ]


def test_each_phase_ends_with_what_it_reached(clock, lines):
    with shown_progress(io.StringIO()) as progress:
        progress.phase("reading", total=4, unit="MB")
        clock[0] += 0.1
        progress.update(4)  # too soon after the first to be written by itself
        progress.phase("sorting")
        clock[0] += 2
    assert lines()[0].startswith("reading, 4 of 4 MB (100%)")
    assert lines()[1] == "sorting; took 2 s"


def test_nothing_is_said_of_work_that_has_not_begun(lines):
    with shown_progress(io.StringIO()):
        pass
    assert lines() == []


def _read_all(terminal: int) -> str:
    """What was written to a terminal whose other side is closed; it comes in pieces."""
    pieces = []
    with contextlib.suppress(OSError):  # EIO: all is read
        while piece := os.read(terminal, 1 << 16):
            pieces.append(piece)
    os.close(terminal)
    return b"".join(pieces).decode()


def test_a_terminal_gets_a_bar_and_log_lines_stand_on_lines_of_their_own(monkeypatch):
    main, side = os.openpty()
    with os.fdopen(side, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        log_to()
        with shown_progress() as progress:
            progress.phase("importing", total=10, unit="MB")
            logging.getLogger("megatron_synth.x").info("a line")
            progress.phase("importing", total=10, unit="MB", done=5)
        logging.getLogger("megatron_synth.x").info("afterwards")
    log_to()
    shown = _read_all(main)
    assert "━" in shown
    assert "importing, 5 of 10 MB (50%)" in shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"[\r\n]\S+ \S+ I megatron_synth\.x: a line\r?\n", plain)
    assert re.search(r"megatron_synth\.x: afterwards\r?\n$", plain)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (ProgressState(), "starting"),
        (ProgressState(phase="a", done=1.26, unit="MB"), "a, 1.30 MB"),
        (ProgressState(phase="a", done=0.004, total=0.05, unit="MB"), "a, 0 of 0.05 MB (8%)"),
        (
            ProgressState(
                phase="a", done=1e6, total=4e6, unit="rows", rate=2e5, seconds_left=15, note="n"
            ),
            "a, 1M of 4M rows (25%), 200K rows/s, 15 s left, n",
        ),
    ],
)
def test_a_state_reads_as_one_line(state, words):
    assert describe_progress(state) == words


def test_durations_read_as_people_say_them():
    assert [format_seconds(s) for s in (7.6, 185, 7800)] == ["8 s", "3 min 05 s", "2 h 10 min"]
