"""The request log: every key once, nothing committed ever changes, whatever a kill leaves."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.config import DataError, RunError
from megatron_synth.engines import Completion, RequestLog


def answer(number: int, text: str = "text") -> Completion:
    return Completion(
        key=f"{number:032x}",
        text=text,
        token_ids=(number, 1, 2),
        finish_reason="stop",
        prompt_tokens=3,
        output_tokens=4,
    )


def write_log(path: Path, count: int) -> None:
    with RequestLog(path, "run") as log:
        for number in range(count):
            log.ask(answer(number).key)
            log.append(answer(number, f"text {number}\nwith a line break"))


def contents(path: Path) -> dict[str, Completion]:
    with RequestLog(path, "run") as log:
        return {key: log.read(key) for key in log}


def test_answers_come_back_as_they_were_written(tmp_path):
    write_log(tmp_path / "log", 5)
    found = contents(tmp_path / "log")
    assert found == {answer(n).key: answer(n, f"text {n}\nwith a line break") for n in range(5)}


@pytest.mark.parametrize("keep", [2, 0])
def test_a_file_cut_at_any_byte_keeps_every_whole_record(tmp_path, keep):
    """As kill -9 leaves it: a beginning of what was written, cut anywhere in the last records."""
    path = tmp_path / "log"
    write_log(path, keep)
    before = contents(path)
    start = path.stat().st_size if keep else 0
    write_log_more(path, keep, 2)
    whole = path.read_bytes()
    everything = contents(path)
    for size in range(start, len(whole)):
        path.write_bytes(whole[:size])
        found = contents(path)
        assert before.items() <= found.items() <= everything.items()
        lines = whole[:size].count(b"\n")
        assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[: max(lines, 1)])


def write_log_more(path: Path, first: int, count: int) -> None:
    with RequestLog(path, "run") as log:
        for number in range(first, first + count):
            log.ask(answer(number).key)
            log.append(answer(number))


def test_work_goes_on_after_a_cut(tmp_path):
    path = tmp_path / "log"
    write_log(path, 3)
    path.write_bytes(path.read_bytes()[:-7])
    with RequestLog(path, "run") as log:
        assert len(log) == 2
        key = answer(2).key
        assert key not in log
        log.ask(key)
        log.append(answer(2, "again"))
        assert log.asked_again == 1
    found = contents(path)
    assert found[key].text == "again"
    assert len(found) == 3


def test_what_failed_is_not_lost_and_counts_as_no_repetition(tmp_path):
    """Only what was in flight at a kill is paid for twice."""
    path = tmp_path / "log"
    key = answer(0).key
    with RequestLog(path, "run") as log:
        log.ask(key)
        log.note_failure(key)
    with RequestLog(path, "run") as log:
        assert key not in log
        log.ask(key)
        assert log.asked_again == 0
    with RequestLog(path, "run") as log:
        log.ask(key)
        assert log.asked_again == 1


@given(place=st.integers(min_value=0), flip=st.integers(min_value=1, max_value=255))
@settings(max_examples=60, deadline=None)
def test_damage_never_changes_an_answer(tmp_path_factory, place, flip):
    """Any byte may rot: the log then refuses to open, or has lost the last record at most."""
    path = tmp_path_factory.mktemp("rot") / "log"
    write_log(path, 3)
    whole = contents(path)
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= flip
    path.write_bytes(bytes(data))
    try:
        found = contents(path)
    except DataError as error:
        assert "damaged" in str(error) or "another run" in str(error)
        return
    assert found.items() <= whole.items()
    assert len(found) >= len(whole) - 1


def test_a_key_is_answered_once(tmp_path):
    with RequestLog(tmp_path / "log", "run") as log:
        log.append(answer(1, "first"))
        with pytest.raises(ValueError, match="has an answer already"):
            log.append(answer(1, "second"))
        log.commit()
        with pytest.raises(ValueError, match="has an answer already"):
            log.append(answer(1, "third"))
    assert contents(tmp_path / "log")[answer(1).key].text == "first"


def test_an_answer_counts_when_its_group_is_committed(tmp_path):
    with RequestLog(tmp_path / "log", "run", group=3, seconds=60) as log:
        assert log.commit_if_due() == []
        for number in range(2):
            log.append(answer(number))
            assert log.commit_if_due() == []
        assert log.waiting == 2
        log.append(answer(2))
        assert [c.key for c in log.commit_if_due()] == [answer(n).key for n in range(3)]
        assert log.waiting == 0


def test_a_late_answer_is_committed_without_a_full_group(tmp_path):
    with RequestLog(tmp_path / "log", "run", group=100, seconds=0.0) as log:
        log.append(answer(0))
        assert len(log.commit_if_due()) == 1


def test_a_log_of_another_run_is_refused(tmp_path):
    write_log(tmp_path / "log", 1)
    with pytest.raises(DataError, match="belongs to another run"):
        RequestLog(tmp_path / "log", "other")


def test_a_file_that_is_no_log_is_refused_or_left_without_answers(tmp_path):
    path = tmp_path / "log"
    write_log(path, 2)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[1:]))
    with pytest.raises(DataError, match="no header"):
        RequestLog(path, "run")


def test_two_writers_are_refused(tmp_path):
    with (
        RequestLog(tmp_path / "log", "run"),
        pytest.raises(RunError, match="another process is writing"),
    ):
        RequestLog(tmp_path / "log", "run", lock_seconds=0.0)


def test_a_full_disk_leaves_whole_records_only(tmp_path, monkeypatch):
    path = tmp_path / "log"
    write_log(path, 2)
    with RequestLog(path, "run") as log:
        real = os.pwrite

        def full(file, data, place):
            real(file, data[:5], place)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(RunError, match="no space left"):
            log.append(answer(9))
        monkeypatch.undo()
        assert path.read_bytes().endswith(b"\n")
    assert set(contents(path)) == {answer(0).key, answer(1).key}


KILLED = """
    import sys
    from pathlib import Path
    from megatron_synth.engines import Completion, RequestLog
    with RequestLog(Path(sys.argv[1]), "run", group=4, seconds=0.01) as log:
        number = len(log)
        while True:
            key = f"{number:032x}"
            log.ask(key)
            log.append(Completion(key=key, text=f"text {number}", token_ids=(number,)))
            for done in log.commit_if_due():
                print(done.key, flush=True)
            number += 1
"""


def test_what_was_reported_as_committed_survives_kill_9(tmp_path):
    path = tmp_path / "log"
    reported: set[str] = set()
    earlier: dict[str, Completion] = {}
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(KILLED), str(path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        for _ in range(200):
            reported.add(writer.stdout.readline().strip())
        os.kill(writer.pid, signal.SIGKILL)
        reported.update(line.strip() for line in writer.stdout.read().splitlines(True)[:-1])
        writer.wait()
        found = contents(path)
        assert reported <= set(found)
        assert earlier.items() <= found.items()
        earlier = found
