"""Remembered hashes: read once, never believed of a file that changed."""

import json
import logging
import os

import pytest

from megatron_synth.runs import hash_cache, hash_file
from megatron_synth.runs.hash_cache import hash_file_once

SIZE = 1 << 20


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEGATRON_SYNTH_HASHES", str(tmp_path / "hashes"))
    return tmp_path / "hashes"


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A large file, and a clock that is far enough from its last change."""
    monkeypatch.setattr(hash_cache, "_SETTLED_NS", -(1 << 62))
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"a" * SIZE)
    return path


@pytest.fixture
def hashed(monkeypatch):
    """Files that were read to be hashed, in order."""
    seen = []

    def count(path):
        seen.append(path)
        return hash_file(path)

    monkeypatch.setattr(hash_cache, "hash_file", count)
    return seen


def test_an_unchanged_file_is_read_once(cache, weights, hashed):
    assert {hash_file_once(weights) for _ in range(3)} == {hash_file(weights)}
    assert hashed == [weights]
    link = weights.with_name("link")
    link.symlink_to(weights)
    assert hash_file_once(link) == hash_file(weights)
    assert hashed == [weights]
    assert not list(cache.glob(".*"))  # no half-written file is left


def test_other_content_gives_another_hash_whatever_was_kept_of_the_file(cache, weights, hashed):
    first = hash_file_once(weights)
    was = weights.stat()
    weights.write_bytes(b"b" * SIZE)
    os.utime(weights, ns=(was.st_atime_ns, was.st_mtime_ns))  # size and time as before
    assert hash_file_once(weights) == hash_file(weights) != first
    other = weights.with_name("other")
    other.write_bytes(b"c" * SIZE)
    other.replace(weights)
    assert hash_file_once(weights) == hash_file(weights)
    assert len(hashed) == 3


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(cache, weights, monkeypatch):
    def hash_and_change(path):
        weights.write_bytes(b"d" * (SIZE + 1))
        return "0" * 32

    monkeypatch.setattr(hash_cache, "hash_file", hash_and_change)
    hash_file_once(weights)
    assert not cache.exists()


def test_a_file_that_was_written_just_now_is_not_remembered(cache, weights, monkeypatch, hashed):
    monkeypatch.setattr(hash_cache, "_SETTLED_NS", 3_600_000_000_000)
    hash_file_once(weights)
    hash_file_once(weights)
    assert len(hashed) == 2
    assert not cache.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"{}", b'{"hash": "12"}'])
def test_a_damaged_cache_is_ignored_with_a_warning_and_mended(
    cache, weights, hashed, caplog, content
):
    right = hash_file_once(weights)
    [known] = cache.iterdir()
    known.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert hash_file_once(weights) == right
    assert "a remembered hash is ignored" in caplog.text
    assert json.loads(known.read_text())["hash"] == right
    assert hash_file_once(weights) == right
    assert len(hashed) == 2


def test_a_cache_that_cannot_be_written_costs_a_warning(cache, weights, caplog):
    cache.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert hash_file_once(weights) == hash_file(weights)
    assert "hashes are not remembered" in caplog.text


def test_small_files_are_hashed_each_time_and_leave_nothing(cache, weights, hashed):
    weights.write_bytes(b"config")
    hash_file_once(weights)
    hash_file_once(weights)
    assert len(hashed) == 2
    assert not cache.exists()


def test_the_folder_is_the_users_unless_one_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("MEGATRON_SYNTH_HASHES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert hash_cache._folder() == tmp_path / "megatron_synth" / "hashes"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert hash_cache._folder() == tmp_path / "home" / ".cache" / "megatron_synth" / "hashes"
