"""A checkpoint that cannot be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tiny_training import TINY, Windows, settings
from megatron_synth.config import RunError
from megatron_synth.runs import Progress
from megatron_synth.training import train

out = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
train(settings(steps=2), TINY, Windows(40), out / "whole", Progress(), data_hash="d")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    train(settings(steps=2), TINY, Windows(40), out / "full", Progress(), data_hash="d")
except RunError as error:
    print(f"RunError: {error}")
"""


@pytest.mark.parametrize("limit", [100_000, 1_000], ids=["weights", "common.pt"])
def test_a_full_disk_is_one_clear_message_and_frees_its_room(tmp_path, limit):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, tmp_path, Path(__file__).parent, str(limit)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "RunError" in done.stdout, done.stdout
    assert "the checkpoint could not be written" in done.stdout
    assert "make room" in done.stdout
    assert list((tmp_path / "whole" / "checkpoints").iterdir())
    assert not list((tmp_path / "full" / "checkpoints").iterdir())
