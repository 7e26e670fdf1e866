"""Checkpoints that are written while training goes on."""

import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import TINY, Windows, settings, weights_hash
from torch.distributed.checkpoint import CheckpointException

from megatron_synth.config import RunError
from megatron_synth.runs import Progress, read_metrics
from megatron_synth.training import read_state, saving, train
from megatron_synth.training.checkpoints import latest_checkpoint, step_of
from megatron_synth.training.saving import Retention

WAIT = 60  # seconds after which a test fails rather than hangs


def run(out, progress=None, **changed):
    config = settings(**{"save_every": 1, "steps": 4, "keep_checkpoints": 9, **changed})
    return train(config, TINY, Windows(400), out, progress or Progress(), data_hash="d")


def losses(out):
    return [(r["step"], r["loss"], r["grad_norm"]) for r in read_metrics(out / "metrics.jsonl")]


def hashes(out):
    return {path.name: weights_hash(path) for path in (out / "checkpoints").iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    run(out, save_in_background=False)
    return out, hashes(out)


class Told(Progress):
    """Calls `then` after each step, with its number."""

    def __init__(self, then):
        super().__init__()
        self.then, self.step = then, 0

    def update(self, done, note=""):
        self.step += 1
        self.then(self.step)


def held_back(monkeypatch, until, write=saving._Prepared.write):
    """Checkpoints are written once `until` is set, not before."""

    def wait_and_write(prepared):
        assert until.wait(WAIT)
        return write(prepared)

    monkeypatch.setattr(saving._Prepared, "write", wait_and_write)


def test_a_checkpoint_is_of_its_step_though_training_went_on_before_it_was_written(
    undisturbed, tmp_path, monkeypatch
):
    _, expected = undisturbed
    later = threading.Event()
    held_back(monkeypatch, later)
    seen = []

    def after(step):
        seen.append(latest_checkpoint(tmp_path / "checkpoints"))
        if step == 4:
            later.set()

    run(tmp_path, Told(after), save_every=2)
    assert seen == [None] * 4  # steps 3 and 4 were done before anything was written
    assert hashes(tmp_path) == {
        name: weights for name, weights in expected.items() if step_of(Path(name)) % 2 == 0
    }


def test_a_save_waits_for_the_one_before(undisturbed, tmp_path, monkeypatch):
    _, expected = undisturbed
    at_once, written, write = [], [], saving._Prepared.write

    def note(prepared):
        at_once.append(prepared.state.step)
        assert len(at_once) == 1
        written.append(write(prepared))
        at_once.clear()

    monkeypatch.setattr(saving._Prepared, "write", note)
    run(tmp_path)
    assert [step_of(path) for path in written] == [1, 2, 3, 4]
    assert hashes(tmp_path) == expected


def test_a_save_that_failed_ends_the_run_at_the_next_step_with_the_reason(tmp_path, monkeypatch):
    failed, write = threading.Event(), saving._Prepared._finish

    def no_room(prepared):
        if prepared.state.step == 2:
            failed.set()
            raise OSError(28, "No space left on device")
        write(prepared)

    monkeypatch.setattr(saving._Prepared, "_finish", no_room)
    with pytest.raises(
        RunError, match=r"the checkpoint could not be written: .*No space"
    ) as caught:
        run(tmp_path, Told(lambda step: step == 3 and failed.wait(WAIT)), save_every=2, steps=100)
    assert "make room" in str(caught.value)
    assert losses(tmp_path)[-1][0] <= 5  # not at the save of step 100, nor of step 50
    assert not list((tmp_path / "checkpoints").iterdir())


class KilledError(BaseException):
    """From here on the process does nothing any more."""


class Kill:
    """Stops every change to files below a folder from the `at`-th on, as `kill -9` would."""

    CHANGES = frozenset({"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"})

    def __init__(self):
        self.folder, self.at, self.seen = None, None, 0
        sys.addaudithook(self._heard)  # there is no way to take it away again

    def arm(self, folder, at):
        self.folder, self.at, self.seen = str(folder), at, 0

    def disarm(self):
        self.folder = None

    def _heard(self, event, arguments):
        folder = self.folder
        if folder is None or event not in self.CHANGES or folder not in str(arguments[0]):
            return
        if event == "open" and not arguments[2] & 0o3:  # to read
            return
        self.seen += 1
        if self.at is not None and self.seen >= self.at:
            raise KilledError


@pytest.fixture(scope="module")
def kill():
    kill = Kill()
    yield kill
    kill.disarm()


@pytest.mark.slow
@pytest.mark.parametrize("background", [True, False])
def test_killed_at_any_change_to_a_file_a_rerun_ends_bit_for_bit_the_same(
    background, undisturbed, tmp_path, kill
):
    expected_out, expected = undisturbed
    how = {"save_in_background": background, "keep_checkpoints": 1, "save_every": 2}
    kill.arm(tmp_path / "counted" / "checkpoints", None)
    run(tmp_path / "counted", **how)
    changes = kill.seen
    kill.disarm()
    assert changes >= 12
    for at in range(1, changes + 1):
        out = tmp_path / str(at)
        kill.arm(out / "checkpoints", at)
        with pytest.raises((KilledError, CheckpointException, RunError)):  # as torch wraps it
            run(out, **how)
        kill.disarm()
        newest = latest_checkpoint(out / "checkpoints")
        if newest is not None:  # whatever has the name of a checkpoint is one, and of its step
            assert weights_hash(newest) == expected[newest.name]
        result = run(out, **how)
        assert weights_hash(result.checkpoint) == expected["step_00000004"]
        assert losses(out) == losses(expected_out)
        left = {path.name for path in (out / "checkpoints").iterdir()}
        assert left <= {"step_00000002", "step_00000004"}  # a kill may come before the older goes


@given(
    steps=st.sets(st.integers(1, 99), max_size=12),
    newest=st.integers(1, 5),
    every=st.none() | st.integers(1, 20),
)
def test_the_newest_and_those_of_every_so_many_steps_stay(steps, newest, every):
    checkpoints = [Path(f"step_{step:08d}") for step in steps]
    gone = {step_of(path) for path in Retention(newest, every).outlived(checkpoints)}
    kept = steps - gone
    assert gone <= steps
    assert set(sorted(steps)[-newest:]) <= kept
    if every:
        assert all(step % every for step in gone)
    assert all(step in sorted(steps)[-newest:] or (every and step % every == 0) for step in kept)


def test_checkpoints_to_keep_for_ever_are_there_at_the_end(tmp_path):
    run(tmp_path, steps=5, keep_checkpoints=1, keep_every=2)
    kept = sorted((tmp_path / "checkpoints").iterdir())
    assert [read_state(path).step for path in kept] == [2, 4, 5]
