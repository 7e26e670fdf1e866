"""Indices of large corpora: whole or absent, made once a node, and the same samples with them."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from megatron_synth.blending import BlendConfig, BlendedStreams, epochs, solve
from megatron_synth.blending.index_files import IndexFolder
from megatron_synth.blending.sizes import measure
from megatron_synth.blending.sources import SourceConfig
from megatron_synth.config import RunError

WHAT = {"kind": "test", "content": "abc", "draw": 0}

# Makes an index slowly, says when it begins, and counts in a file how often it was made.
MAKER = """
import sys, time
from pathlib import Path
import numpy as np
from megatron_synth.blending.index_files import IndexFolder

def make():
    print("making", flush=True)
    with open(sys.argv[2], "a") as made:
        made.write("x")
    time.sleep(float(sys.argv[3]))
    return np.arange(1000, dtype=np.int64)

what = {"kind": "test", "content": "abc", "draw": 0}
assert IndexFolder(Path(sys.argv[1])).array(what, make)[-1] == 999
"""

# Is killed after half of the file is written.
KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from megatron_synth.blending.index_files import IndexFolder

def save(handle, array, allow_pickle):
    handle.write(b"half of an index")
    handle.flush()
    os.kill(os.getpid(), signal.SIGKILL)

np.save = save
what = {"kind": "test", "content": "abc", "draw": 0}
IndexFolder(Path(sys.argv[1])).array(what, lambda: np.arange(1000, dtype=np.int64))
"""


def numbers() -> np.ndarray:
    return np.arange(1000, dtype=np.int64)


def never() -> np.ndarray:
    raise AssertionError("is there already")


def visible(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "index"


def test_an_index_is_made_once_and_then_mapped(folder):
    assert not IndexFolder(folder).has(WHAT)
    first = IndexFolder(folder).array(WHAT, numbers)
    again = IndexFolder(folder).array(dict(reversed(WHAT.items())), never)
    assert IndexFolder(folder).has(WHAT)
    for array in (first, again):
        assert array.dtype == np.int64 and np.array_equal(array, numbers())
        assert isinstance(array.base, np.memmap) and not array.flags.writeable
    assert len(visible(folder)) == len(list(folder.iterdir())) == 1  # neither lock nor leftovers


@pytest.mark.parametrize("change", [{"content": "abd"}, {"draw": 1}, {"more": None}])
def test_everything_that_decides_an_index_is_in_its_name(folder, change):
    IndexFolder(folder).array(WHAT, numbers)
    other = IndexFolder(folder).array({**WHAT, **change}, lambda: numbers() + 1)
    assert other[0] == 1
    assert len(visible(folder)) == 2


def test_two_processes_at_once_make_it_once(folder, tmp_path):
    made = tmp_path / "made"
    command = [sys.executable, "-c", MAKER, str(folder), str(made), "0.7"]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert made.read_text() == "x"
    assert len(visible(folder)) == len(list(folder.iterdir())) == 1


def test_threads_of_one_process_make_it_once(folder):
    made = []

    def make():
        made.append(1)
        time.sleep(0.2)
        return numbers()

    threads = [
        threading.Thread(target=lambda: IndexFolder(folder).array(WHAT, make)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert made == [1]


def test_a_kill_while_computing_leaves_nothing_and_the_next_one_makes_it(folder, tmp_path):
    command = [sys.executable, "-c", MAKER, str(folder), str(tmp_path / "made"), "60"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "making\n"
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL
    process.stdout.close()
    assert visible(folder) == []
    assert np.array_equal(IndexFolder(folder).array(WHAT, numbers), numbers())
    assert len(list(folder.iterdir())) == 1


def test_a_kill_while_writing_leaves_nothing_under_the_name(folder):
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert visible(folder) == []
    assert any(p.name.endswith(".tmp") for p in folder.iterdir())
    assert np.array_equal(IndexFolder(folder).array(WHAT, numbers), numbers())
    assert len(list(folder.iterdir())) == 1  # what the killed one left is gone


def test_an_error_while_making_leaves_nothing(folder):
    def broken():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        IndexFolder(folder).array(WHAT, broken)
    assert list(folder.iterdir()) == []
    assert np.array_equal(IndexFolder(folder).array(WHAT, numbers), numbers())


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other dtype", "other shape"])
def test_a_damaged_index_is_made_again(folder, damage):
    IndexFolder(folder).array(WHAT, numbers)
    path = folder / visible(folder)[0]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-800])
    elif damage in ("empty", "text"):
        path.write_bytes(b"" if damage == "empty" else b"no index")
    else:
        wrong = numbers().astype(np.int32) if damage == "other dtype" else numbers().reshape(10, -1)
        np.save(path, wrong)
    assert np.array_equal(IndexFolder(folder).array(WHAT, numbers), numbers())
    assert np.array_equal(IndexFolder(folder).array(WHAT, never), numbers())


def test_a_folder_of_another_user_is_refused_with_one_message(folder, monkeypatch):
    folder.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(RunError, match="another user") as caught:
        IndexFolder(folder).array(WHAT, numbers)
    assert str(folder) in str(caught.value) and "MEGATRON_SYNTH_INDEX" in str(caught.value)
    assert visible(folder) == []


def test_a_read_only_folder_is_refused_but_what_is_there_is_used(folder):
    IndexFolder(folder).array(WHAT, numbers)
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):
        folder.chmod(0o700)
        pytest.skip("root may write to every folder")
    try:
        assert np.array_equal(IndexFolder(folder).array(WHAT, never), numbers())
        with pytest.raises(RunError, match="cannot write"):
            IndexFolder(folder).array({**WHAT, "draw": 1}, numbers)
        folder.chmod(0o000)
        with pytest.raises(RunError, match="cannot be read"):
            IndexFolder(folder).array(WHAT, never)
    finally:
        folder.chmod(0o700)


def test_a_file_in_place_of_the_folder_and_a_folder_in_place_of_the_file_are_refused(folder):
    folder.write_text("a file")
    with pytest.raises(RunError) as caught:
        IndexFolder(folder).array(WHAT, numbers)
    assert str(folder) in str(caught.value)
    folder.unlink()
    IndexFolder(folder).array(WHAT, numbers)
    path = folder / visible(folder)[0]
    path.unlink()
    path.mkdir()
    with pytest.raises(RunError, match="cannot be read"):
        IndexFolder(folder).array(WHAT, numbers)


def test_a_full_disk_is_a_failure_of_the_run_and_leaves_nothing(folder, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="cannot write"):
        IndexFolder(folder).array(WHAT, numbers)
    assert visible(folder) == []


def test_the_folder_is_the_users_own_unless_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("MEGATRON_SYNTH_INDEX", str(tmp_path / "here"))
    assert IndexFolder().folder == tmp_path / "here"
    monkeypatch.delenv("MEGATRON_SYNTH_INDEX")
    assert IndexFolder().folder.name == f"megatron_synth-{os.getuid()}"
    assert not (tmp_path / "here").exists()  # it is made when it is first needed


S = 8


def plan_of(prefix, passes=3, reshuffle=True, **source):
    source = SourceConfig.model_validate({"data": prefix, **source})
    corpora = {"c": {"epochs": passes, "reshuffle": reshuffle}}
    config = BlendConfig.model_validate(
        {"sequence_length": S, "global_batch_size": 1, "corpora": corpora}
    )
    return solve(config, {"c": measure(source)})


def served(plan, folder):
    streams = BlendedStreams(plan, folder=IndexFolder(folder))
    return [sample["tokens"].tolist() for sample in streams]


@pytest.mark.parametrize("what", ["all", "selection", "order"])
@pytest.mark.parametrize("reshuffle", [True, False])
def test_a_huge_corpus_is_served_as_a_small_one(
    make_corpus, tmp_path, monkeypatch, folder, what, reshuffle
):
    np.save(tmp_path / "mask.npy", np.arange(90) % 3 > 0)
    np.save(tmp_path / "order.npy", np.random.default_rng(0).permutation(90))
    source = {
        "all": {},
        "selection": {"select": {"file": tmp_path / "mask.npy"}},
        "order": {"order": tmp_path / "order.npy"},
    }[what]
    prefix = make_corpus("c", [3 + i % 11 for i in range(90)])
    plan = plan_of(prefix, reshuffle=reshuffle, **source)
    in_memory = served(plan, tmp_path / "other")
    monkeypatch.setattr(epochs, "_KEPT_ON_DISK", 4)
    assert served(plan, folder) == in_memory
    # A given order of documents is the same in every epoch, so it has one index.
    indices = 1 if what == "order" or not reshuffle else 3
    assert len(visible(folder)) == indices + (what != "all")
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert served(plan, folder) == in_memory  # a later process finds them
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_two_plans_of_one_corpus_do_not_share_what_differs(make_corpus, monkeypatch, folder):
    monkeypatch.setattr(epochs, "_KEPT_ON_DISK", 4)
    prefix = make_corpus("c", [3 + i % 11 for i in range(90)])
    plan = plan_of(prefix, 1)
    served(plan, folder)
    served(plan.model_copy(update={"seed": 1}), folder)
    assert len(visible(folder)) == 2
    served(plan.model_copy(update={"sequence_length": S}), folder)
    assert len(visible(folder)) == 2


def test_the_next_epochs_index_is_built_ahead_of_need(make_corpus, monkeypatch, folder):
    monkeypatch.setattr(epochs, "_KEPT_ON_DISK", 4)
    builders = []
    count = epochs._count

    def counted(*arguments):
        builders.append(threading.current_thread().name)
        return count(*arguments)

    monkeypatch.setattr(epochs, "_count", counted)
    plan = plan_of(make_corpus("c", [3 + i % 11 for i in range(90)]), 2)
    streams = BlendedStreams(plan, folder=IndexFolder(folder))
    per_epoch = plan.corpora[0].windows_per_epoch
    first_half = range(per_epoch // 2 - 1)
    for sample in first_half:
        streams[sample]
    assert builders == ["MainThread"] and len(visible(folder)) == 1
    streams[per_epoch - 1]
    deadline = time.monotonic() + 30
    while len(visible(folder)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert builders == ["MainThread", "epoch 1 of c"]
    streams[per_epoch]
    assert len(builders) == 2  # the second epoch finds its index there
    streams[2 * per_epoch - 1]
    for thread in threading.enumerate():
        if thread.name.endswith(" of c"):
            thread.join(timeout=60)
    assert len(visible(folder)) == 2  # nothing is built for an epoch that is not served


def test_an_index_with_a_hole_is_made_again(make_corpus, monkeypatch, folder):
    """A power cut may leave zeros in a file that has its whole length."""
    monkeypatch.setattr(epochs, "_KEPT_ON_DISK", 4)
    plan = plan_of(make_corpus("c", [3 + i % 11 for i in range(200)]), 1)
    before = served(plan, folder)
    (index,) = visible(folder)
    path = folder / index
    content = bytearray(path.read_bytes())
    content[-40:-8] = bytes(32)
    path.write_bytes(bytes(content))
    assert served(plan, folder) == before
    assert path.read_bytes() != bytes(content)
