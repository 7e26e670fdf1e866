"""The same run on one rank and split over two: the same losses.

Each run is its own torchrun. Float32: the order of summation leaves differences near 1e-7, and
Adam, which divides a gradient by its own size, makes more of them where a gradient is near zero:
how much depends on the processor. What a missing reduction does is shown in float64, to 1e-9
(test_layouts_float64.py).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_training import SETTINGS, TINY, weights_hash

from megatron_synth.models import ModelConfig
from megatron_synth.runs import read_metrics
from megatron_synth.training import TrainConfig

SCRIPT = Path(__file__).parent / "tiny_training.py"
MODELS = {
    "quickstart": ModelConfig(preset="quickstart-1m", vocab_size=1000),
    "moe": ModelConfig(preset="quickstart-moe", vocab_size=1000),
    "tied": TINY.model_copy(update={"tie_embeddings": True, "qk_norm": True}),
}
TENSOR, PIPELINE, EXPERT, DATA = (
    {"tensor_parallel": 2},
    {"pipeline_parallel": 2},
    {"expert_parallel": 2},
    {},
)


def run(out, model, ranks, **changed):
    config = TrainConfig(**{**SETTINGS, "steps": 6, "save_every": 100, **changed})
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    arguments = [out, MODELS[model].model_dump_json(), config.model_dump_json()]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *(launcher if ranks > 1 else []), SCRIPT, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        {"loss": r["loss"], "norm": r["grad_norm"], **r.get("validation", {})}
        for r in read_metrics(out / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    known = {}

    def losses(model):
        if model not in known:
            known[model] = run(tmp_path_factory.mktemp("one") / model, model, 1)
        return known[model]

    return losses


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "layout"),
    [
        ("quickstart", DATA),
        ("tied", TENSOR),
        ("tied", PIPELINE),
        ("moe", {**TENSOR, **EXPERT}),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value) or "data_parallel",
)
def test_two_ranks_give_the_losses_of_one(model, layout, one_rank, tmp_path):
    ours, theirs = run(tmp_path, model, 2, **layout), one_rank(model)
    assert len(ours) == 6
    for mine, expected in zip(ours, theirs, strict=True):
        for name in mine:
            tolerance = 1e-4 if name == "norm" else 1e-5
            assert mine[name] == pytest.approx(expected[name], rel=tolerance), name


@pytest.mark.slow
@pytest.mark.parametrize("layout", [TENSOR, PIPELINE], ids=["tensor", "pipeline"])
def test_a_checkpoint_of_two_ranks_loads_whole_on_one(layout, tmp_path):
    """Without a single step taken the weights are the initial ones, so they must be equal."""
    still = {"steps": 1, "schedule": {"kind": "constant", "peak": 1e-30, "warmup_steps": 0}}
    run(tmp_path / "one", "quickstart", 1, **still)
    run(tmp_path / "two", "quickstart", 2, **still, **layout)
    one, two = (tmp_path / name / "checkpoints" / "step_00000001" for name in ("one", "two"))
    assert weights_hash(one) == weights_hash(two)
