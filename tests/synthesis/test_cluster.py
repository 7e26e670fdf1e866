"""The private Ray: where its files go, and what of it is put back."""

import os
from pathlib import Path

import pytest

from megatron_synth.config import RunError
from megatron_synth.synthesis import cluster


def test_a_long_path_sends_rays_files_to_a_short_one(tmp_path, monkeypatch):
    long = tmp_path / ("a" * 80)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folder = cluster._socket_safe_folder(long)
    try:
        assert long not in folder.parents
        assert len(str(folder)) + 75 <= 107
        assert list(long.iterdir()) == []
    finally:
        folder.rmdir()


def test_no_short_path_at_all_is_a_clear_error(tmp_path, monkeypatch):
    long = tmp_path / ("a" * 80)
    long.mkdir()
    monkeypatch.setattr(cluster.tempfile, "gettempdir", lambda: str(long))
    monkeypatch.setattr(cluster, "_SHORT", str(long))
    with pytest.raises(RunError, match="short enough"):
        cluster._socket_safe_folder(long)


def test_the_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("NEMO_CURATOR_SLURM_ARRAY_ENABLED", raising=False)
    with cluster.ray_environment(threads=3):
        assert os.environ["NEMO_CURATOR_SLURM_ARRAY_ENABLED"] == "0"
        assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "NEMO_CURATOR_SLURM_ARRAY_ENABLED" not in os.environ


def test_the_folder_of_a_killed_try_is_removed(tmp_path):
    left = tmp_path / "ray-abc"
    (left / "session").mkdir(parents=True)
    (tmp_path / "ray_folder").write_text(str(left))
    cluster._remove_leftovers(tmp_path / "ray_folder")
    assert not left.exists()
    assert not (tmp_path / "ray_folder").exists()


def test_a_damaged_record_removes_nothing_else(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (tmp_path / "ray_folder").write_text(str(precious))
    cluster._remove_leftovers(tmp_path / "ray_folder")
    assert precious.is_dir()
    assert Path(tmp_path / "ray_folder").exists() is False
