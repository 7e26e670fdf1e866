"""The check of a machine runs without a GPU too, on tiny models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "gpu_check.py"


@pytest.mark.slow
def test_every_part_answers_with_figures():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(TOOL), "--json", "--steps", "2"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found["attention"]) == 2
    on_cpu = found["machine"]["device"] == "CPU"
    for row in found["attention"]:
        errors = [value for value in row.values() if isinstance(value, float)]
        assert len(errors) == 4 and max(errors) < (1e-5 if on_cpu else 3e-2)
    assert {row["model"]: row["loss"] <= (0 if on_cpu else 0.05) for row in found["parity"]} == {
        "dense": True,
        "moe": True,
    }
    assert {row["model"] for row in found["speed"]} == {"dense", "moe"}
    assert all(row["tokens_per_second"] > 0 for row in found["speed"] if "error" not in row)
    assert all("error" not in row for row in found["speed"][:1])
