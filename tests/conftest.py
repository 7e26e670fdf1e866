"""Fixtures that several rooms share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Time is measured in benchmarks, never asserted here: machines are shared.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Leave nothing in the folders where this user's runs keep their indices and hashes."""
    os.environ["MEGATRON_SYNTH_INDEX"] = str(tmp_path_factory.mktemp("index"))
    os.environ["MEGATRON_SYNTH_HASHES"] = str(tmp_path_factory.mktemp("hashes"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real text for tests; skips where it is absent."""
    folder = Path(os.environ.get("MEGATRON_SYNTH_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "corpus").is_dir():
        pytest.skip(f"no real text under {folder}; set MEGATRON_SYNTH_TEST_DATA")
    return folder
