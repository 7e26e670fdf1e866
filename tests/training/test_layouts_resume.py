"""A checkpoint of one layout goes on in another: the same numbers as without the change.

The optimizer's state is compared bit for bit, by writing the checkpoint again in the new layout,
and the steps after it: in float64 to 1e-9 of a run on one rank. The distributed optimizer works in
float32, where an unchanged layout must go on bit for bit.
"""

import pytest
import torch
from layout_runs import MODELS, described, start
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

from megatron_synth.runs import read_metrics

HALF, STEPS = 5, 10
CHANGES = [
    ("dense", "data", "one"),
    ("dense", "one", "data"),
    ("tied", "tensor", "one"),
    ("tied", "one", "tensor"),
    ("tied", "tensor", "pipeline"),
    ("tied", "pipeline", "one"),
    ("dense", "pipeline", "tensor"),
    ("moe", "expert", "one"),
    ("moe", "one", "expert"),
    ("moe", "expert", "tensor"),
    ("moe", "tensor", "tensor+expert"),
    ("moe", "data", "expert"),
    ("deep", "interleaved", "pipeline"),
    ("deep tied", "interleaved", "one"),
    ("deep moe", "one", "interleaved"),
]
SHARED = [
    ("dense", "data", "data"),
    ("dense", "data", "one"),
    ("dense", "one", "data"),
    ("tied", "tensor", "data"),
    ("moe", "expert", "expert"),
    ("moe", "data", "one"),
    ("deep", "interleaved", "one"),
]
"""Changes with the distributed optimizer."""


def part(model, before, after, steps, *, shared=False, resave=False):
    layout = before if steps == HALF else after
    run = described(model, layout)
    run["name"] = f"{model} {before} to {after}{' shared' if shared else ''}"
    run["train"].update(steps=steps, save_every=HALF, keep_checkpoints=9)
    if shared:
        run["train"].update(precision="fp32", optimizer={"distributed": True})
    return {**run, "resave": resave}


def whole(model, layout, shared):
    run = part(model, layout, layout, STEPS, shared=shared)
    return {**run, "name": f"{model} {layout} whole{' shared' if shared else ''}"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All runs of this file: each number of ranks is started twice."""
    out = tmp_path_factory.mktemp("resumed")
    all_changes = [*((c, False) for c in CHANGES), *((c, True) for c in SHARED)]
    wholes = [(model, "one", False) for model in MODELS]
    wholes += [(model, before, True) for model, before, _ in SHARED]
    first = [part(*change, HALF, shared=shared) for change, shared in all_changes]
    first += [whole(*run) for run in dict.fromkeys(wholes)]
    second = [part(*change, STEPS, shared=shared, resave=True) for change, shared in all_changes]
    for half in (first, second):
        for ranks in (1, 2):
            start(out, ranks, [run for run in half if run["ranks"] == ranks])
    return out


def steps_after(runs, name):
    records = read_metrics(runs / name / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    return [(record["loss"], record["grad_norm"]) for record in records[HALF:]]


def tensors(checkpoint):
    found = _load_state_dict_from_keys(storage_reader=FileSystemReader(checkpoint))
    return {name: value for name, value in flat(found) if torch.is_tensor(value)}


def flat(value, name=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}")
    else:
        yield name, value


def require_same_state(folder):
    written, again = (
        tensors(folder / inner / f"step_{HALF:08d}") for inner in ("checkpoints", "again")
    )
    assert written.keys() == again.keys()
    assert any("exp_avg_sq" in name for name in written)
    assert any(value.count_nonzero() for name, value in written.items() if "exp_avg" in name)
    for name, value in written.items():
        assert torch.equal(value, again[name]), name


@pytest.mark.slow
@pytest.mark.parametrize(("model", "before", "after"), CHANGES)
def test_the_state_is_the_same_in_another_layout(model, before, after, runs):
    name = f"{model} {before} to {after}"
    require_same_state(runs / name)
    for got, expected in zip(
        steps_after(runs, name), steps_after(runs, f"{model} one whole"), strict=True
    ):
        assert got == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "before", "after"), SHARED)
def test_the_distributed_optimizer_goes_on_where_it_stood(model, before, after, runs):
    name = f"{model} {before} to {after} shared"
    require_same_state(runs / name)
    got, expected = (
        steps_after(runs, name),
        steps_after(runs, f"{model} {before} whole shared"),
    )
    if before == after:
        assert got == expected
    for ours, theirs in zip(got, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
