from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_synth.runs import MetricsLog, Progress, read_metrics, read_progress


def test_progress_is_seen_from_another_place(tmp_path: Path) -> None:
    progress = Progress(tmp_path / ".progress.json")
    progress.phase("tokenizing", total=200, unit="MB", done=50)
    state = read_progress(tmp_path)
    assert state is not None
    assert (state.phase, state.share, state.unit) == ("tokenizing", 0.25, "MB")


def test_the_rate_counts_this_try_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("megatron_synth.runs.progress.time.monotonic", lambda: clock[0])
    progress = Progress()
    progress.phase("training", total=1000, unit="tokens", done=500)
    clock[0] += 10
    progress.update(600)
    assert progress.state.rate == 10
    assert progress.state.seconds_left == 40


def test_track_yields_everything_and_ends_at_the_total() -> None:
    progress = Progress()
    assert list(progress.track("abc", "reading", total=3)) == ["a", "b", "c"]
    assert progress.state.share == 1.0


def test_no_progress_yet_is_none(tmp_path: Path) -> None:
    assert read_progress(tmp_path) is None
    (tmp_path / ".progress.json").write_text("{")
    assert read_progress(tmp_path) is None


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 30))
def test_after_a_resume_every_step_stands_in_the_metrics_once(
    tmp_path_factory: pytest.TempPathFactory, written: int, checkpoint: int, torn: int
) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(1, written + 1):
        log.write(step, loss=1.0 / step)
    log.close()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - min(torn, len(content))])
    resume = min(checkpoint, len(read_metrics(path)))
    log = MetricsLog(path, resume_step=resume)
    for step in range(resume + 1, 22):
        log.write(step, loss=1.0 / step)
    log.close()
    assert [r["step"] for r in read_metrics(path)] == list(range(1, 22))
