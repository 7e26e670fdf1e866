"""In float64 a model split over ranks trains as on one rank, to 1e-9; without any one of the
reductions it does not.

Float32 hides a missing sum of something small under its own rounding; here nothing hides.
"""

import json
import math

import pytest
from layout_runs import LAYOUTS, MODELS, STEPS, described, start
from tiny_training import SETTINGS

from megatron_synth.runs import read_metrics

SHORT = 5
TENSOR, PIPELINE, CONTEXT = "tensor_parallel", "pipeline_parallel", "context_parallel"
NOT_MOE = ("one", "interleaved", "tensor+interleaved")
PARITY = [
    *(("dense", layout) for layout in ("tensor", "pipeline", "data", "tensor+pipeline")),
    *(("tied", layout) for layout in ("tensor", "pipeline", "tensor+pipeline")),
    *(("moe", layout) for layout in LAYOUTS if layout not in NOT_MOE),
    *(("dense", layout) for layout in ("data+overlap", "context", "context+data")),
    *((model, "interleaved") for model in ("deep", "deep tied", "deep moe")),
    ("deep", "tensor+interleaved"),
]
LEFT_OUT = [
    ("dense", "tensor", "row-parallel output"),
    ("dense", "tensor", "embedding output"),
    ("dense", "tensor", "column-parallel input gradient"),
    ("dense", "tensor", "cross-entropy"),
    ("dense", "tensor", "norm gradients"),
    ("dense", "tensor", "gradient norm"),
    ("dense", "pipeline", "gradient norm"),
    ("tied", "pipeline", "tied embedding gradients"),
    ("deep", "interleaved", "gradient norm"),
    ("deep tied", "interleaved", "tied embedding gradients"),
    ("dense", "data", "gradients"),
    ("dense", "data", "token count"),
    ("dense", "context", "gradients"),
    ("dense", "context", "token count"),
    ("moe", "expert", "gradients"),
    ("moe", "expert", "gradient norm"),
    ("moe", "data+expert", "expert gradients"),
    ("moe", "tensor", "router counts"),
    ("moe", "expert+allgather", "gradients"),
]
TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All runs of this file: three starts of ranks."""
    out = tmp_path_factory.mktemp("layouts")
    everything = [
        *(described(model, "one") for model in MODELS),
        *(described(*run) for run in PARITY),
        *(described(*run, steps=SHORT) for run in LEFT_OUT),
    ]
    for ranks in (1, 2, 4):
        start(out, ranks, [run for run in everything if run["ranks"] == ranks])
    return out


def records(runs, model, layout, without=None):
    return read_metrics(runs / described(model, layout, without)["name"] / "metrics.jsonl")


def differences(ours, theirs):
    """Largest relative difference of a loss or a gradient norm at each step of `ours`."""
    figures = [
        [{"norm": r["grad_norm"], "loss": r["loss"], **r["loss_by_dataset"]} for r in run]
        for run in (ours, theirs)
    ]
    return [
        max(abs(mine[name] / expected[name] - 1) for name in expected)
        for mine, expected in zip(*figures, strict=False)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "layout"), PARITY)
def test_a_layout_gives_the_losses_and_gradient_norms_of_one_rank(model, layout, runs):
    found = differences(records(runs, model, layout), records(runs, model, "one"))
    assert len(found) == STEPS
    assert max(found) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("model", "layout", "reduction"), LEFT_OUT)
def test_without_one_reduction_the_comparison_fails(model, layout, reduction, runs):
    found = differences(records(runs, model, layout, reduction), records(runs, model, "one"))
    assert len(found) == SHORT
    assert max(found) > 1000 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("model", "layout"), PARITY)
def test_a_layout_reads_the_windows_of_one_rank_in_its_order(model, layout, runs):
    """Ranks of one data-parallel copy read the same; the copies share each global batch."""
    ranks, sizes = LAYOUTS[layout]
    copies = ranks // math.prod(sizes.get(name, 1) for name in (TENSOR, PIPELINE, CONTEXT))
    folder = runs / described(model, layout)["name"]
    read = [json.loads((folder / f"windows_{rank}.json").read_text()) for rank in range(ranks)]
    distinct = list(dict.fromkeys(tuple(indices) for indices in read))
    assert len(distinct) == copies
    size = SETTINGS["global_batch_size"]
    share = size // copies
    together = [
        sorted(index for indices in distinct for index in indices[step * share :][:share])
        for step in range(STEPS)
    ]
    assert together == [list(range(step * size, (step + 1) * size)) for step in range(STEPS)]
