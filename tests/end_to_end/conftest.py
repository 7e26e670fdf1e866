"""Fixtures: the command line, and one toy run that nothing disturbed."""

from pathlib import Path

import pytest
from toy import Cli


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    cli = Cli(folder)
    done = cli(*cli.toy(folder / "run"), timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "run"
