import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_synth.config import DataError, RunError
from megatron_synth.runs import (
    AlreadyDoneError,
    Manifest,
    Store,
    atomic_write,
    exclusive,
    hash_json,
    read_manifest,
)


def make(store: Store, step: str, text: str, **inputs: Manifest) -> Manifest:
    key = store.key("write", 1, {"text": text}, inputs)
    with store.open(step, key, inputs) as work:
        (work.folder / "text").write_text(text)
        return store.commit(
            work, step=step, kind="write", key=key, config={"text": text}, counts={"n": len(text)}
        )


def test_a_committed_step_is_found_by_its_key_and_tells_what_made_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    parent = make(store, "a", "hello")
    child = make(store, "b", "world", source=parent)
    found = store.find("b", child.key)
    assert found == child
    assert child.parents["source"].content_hash == parent.content_hash
    assert (store.root / child.parents["source"].folder / "text").read_text() == "hello"
    assert child.files["text"].bytes == 5
    assert not list(tmp_path.glob("*.partial"))


def test_the_key_changes_with_config_code_version_and_content_of_inputs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, two = make(store, "a", "one"), make(store, "a", "two")
    keys = [
        store.key("k", 1, {"x": 1}, {"i": one}),
        store.key("k", 1, {"x": 2}, {"i": one}),
        store.key("k", 2, {"x": 1}, {"i": one}),
        store.key("j", 1, {"x": 1}, {"i": one}),
        store.key("k", 1, {"x": 1}, {"i": two}),
        store.key("k", 1, {"x": 1}, {"j": one}),
        store.key("k", 1, {"x": 1}, {}),
    ]
    assert len(set(keys)) == len(keys)


def test_the_content_hash_does_not_depend_on_where_the_store_lies(tmp_path: Path) -> None:
    here = make(Store(tmp_path / "here"), "a", "text")
    there = make(Store(tmp_path / "there"), "other", "text")
    assert here.content_hash == there.content_hash


def test_an_error_leaves_the_work_for_the_next_try_and_no_final_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ZeroDivisionError), store.open("a", "k" * 32, {}) as work:
        (work.folder / "half").write_text("1")
        raise ZeroDivisionError
    assert not store.folder("a", "k" * 32).exists()
    with store.open("a", "k" * 32, {}) as work:
        assert (work.folder / "half").read_text() == "1"


def test_a_product_holds_its_own_hidden_files_and_no_left_overs_of_killed_tries(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    with store.open("a", "k" * 32, {}) as work:
        work.progress.phase("writing")
        (work.folder / "checkpoint").mkdir()
        (work.folder / "checkpoint" / ".metadata").write_text("of the checkpoint")
        (work.folder / "checkpoint" / ".text.123.tmp").write_text("half")
        made = store.commit(work, step="a", kind="k", key="k" * 32, config={}, counts={})
    assert set(made.files) == {"checkpoint/.metadata"}
    left = {str(p.relative_to(made.folder)) for p in made.folder.rglob("*") if p.is_file()}
    assert left == {"checkpoint/.metadata", "manifest.json"}


def test_two_processes_cannot_work_on_one_step(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "lock", "step a"),
        pytest.raises(RunError, match=f"step a: .*pid {os.getpid()}"),
        exclusive(tmp_path / "lock", "step a", patience=0.2),
    ):
        pass


def test_a_step_that_another_process_finished_meanwhile_is_not_done_twice(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = make(store, "a", "text")
    with pytest.raises(AlreadyDoneError), store.open("a", made.key, {}):
        pytest.fail("worked on a finished step")
    assert store.find("a", made.key) == made


KILLED = """
import os, signal, sys
from pathlib import Path
from megatron_synth.runs import Store
store, stop = Store(Path(sys.argv[1])), int(sys.argv[2])
calls = 0
def count(event, args):
    global calls
    if event in ("open", "os.rename", "os.mkdir", "os.remove") and str(sys.argv[1]) in str(args[0]):
        calls += 1
        if calls == stop:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
key = store.key("k", 1, {}, {})
if store.find("a", key) is None:
    with store.open("a", key, {}) as work:
        for name in "xyz":
            (work.folder / name).write_text(name)
        store.commit(work, step="a", kind="k", key=key, config={}, counts={})
print(calls)
"""


def run_killed(root: Path, stop: int) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(root), str(stop)],
        capture_output=True,
        text=True,
        check=False,
    )


def kill_points(root: Path) -> Iterator[int]:
    undisturbed = run_killed(root, -1)
    return iter(range(1, int(undisturbed.stdout) + 1))


@pytest.mark.slow
def test_a_kill_at_any_file_operation_leaves_all_or_nothing_under_the_final_name(
    tmp_path: Path,
) -> None:
    points = list(kill_points(tmp_path / "undisturbed"))
    assert len(points) > 8
    for point in points:
        root = tmp_path / str(point)
        assert run_killed(root, point).returncode == -signal.SIGKILL
        finals = [p for p in root.glob("a-*") if not p.name.endswith(".partial")]
        for final in finals:
            assert set(read_manifest(final).files) == {"x", "y", "z"}
        assert run_killed(root, -1).returncode == 0
        (final,) = [p for p in root.glob("a-*") if not p.name.endswith(".partial")]
        assert [(final / name).read_text() for name in "xyz"] == ["x", "y", "z"]


def test_a_damaged_manifest_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="damaged manifest"):
        read_manifest(tmp_path)
    with pytest.raises(DataError, match=r"no manifest\.json"):
        read_manifest(tmp_path / "nowhere")


def test_a_full_disk_gives_one_message_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RunError, match="no space left"), atomic_write(path) as handle:
        handle.write("new")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values))
def test_a_json_hash_survives_a_round_trip_and_any_order_of_keys(
    content: dict[str, object],
) -> None:
    again = json.loads(json.dumps(dict(reversed(content.items()))))
    assert hash_json(again) == hash_json(content)
