"""What ranks must agree on: the experts' load, and whether and why to stop."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_training import SETTINGS, TINY

from megatron_synth.models.config import MoEConfig
from megatron_synth.runs import read_metrics
from megatron_synth.training import TrainConfig

SCRIPT = Path(__file__).parent / "tiny_training.py"
SPARSE = TINY.model_copy(update={"moe": MoEConfig(num_experts=4, top_k=2)})


def run(out, ranks, model=TINY, **changed):
    config = TrainConfig(**{**SETTINGS, **changed})
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.run(
        [
            *(sys.executable, "-W", "ignore", *(launcher if ranks > 1 else []), SCRIPT, out),
            *(model.model_dump_json(), config.model_dump_json()),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["expert_parallel", "tensor_parallel", "pipeline_parallel"])
def test_the_experts_load_is_the_same_however_the_model_is_split(layout, tmp_path):
    for name, ranks, split in (("one", 1, {}), ("two", 2, {layout: 2})):
        done = run(tmp_path / name, ranks, SPARSE, steps=2, **split)
        assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = (
        [record["experts"] for record in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("two", "one")
    )
    assert ours == theirs


@pytest.mark.slow
def test_two_ranks_stop_together_and_go_on_with_the_rules_memory(tmp_path):
    stopped = run(tmp_path, 2, stopping={"max_hours": 1e-9})
    assert stopped.returncode != 0
    assert "hours are over" in stopped.stderr
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    rules = {
        "spike": {"above": 5.0, "window": 2},
        "plateau": {"validation": "held out", "epoch_steps": 4},
    }
    for _ in range(2):  # the second call has nothing left to do
        done = run(tmp_path, 2, stopping=rules)
        assert done.returncode == 0, done.stderr[-3000:]
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, 9))
    assert all(r["ranks"]["slowest"] in (0, 1) for r in records)
    assert all(1 <= r["ranks"]["over_median"] <= 2 for r in records)
    assert [p.name for p in (tmp_path / "best").iterdir()] == ["step_00000008"]
