"""A run whose plan of data changes on the way, declared or not."""

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from tiny_training import TINY, settings, weights_hash

from megatron_synth.blending import BlendConfig, Chain, ChainedStreams, corpus_size, solve
from megatron_synth.config import ConfigError
from megatron_synth.runs import Progress, read_metrics
from megatron_synth.training import TrainJob, read_state, run_job, train

CONSTANT = {"kind": "constant", "peak": 3e-3, "warmup_steps": 2}


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("packed"), np.random.default_rng(0)
    for name in ("organic", "synthetic"):
        builder = IndexedDatasetBuilder(str(folder / f"{name}.bin"), dtype=np.int32)
        for length in random.integers(5, 60, 40):
            builder.add_document(torch.from_numpy(random.integers(1, 256, length)), [length])
        builder.finalize(str(folder / f"{name}.idx"))
    return {name: folder / name for name in ("organic", "synthetic")}


def phase(prefixes, corpora, steps, after=None, at=None):
    tree = {
        "sequence_length": 32,
        "global_batch_size": 4,
        "budget": {"steps": steps},
        "corpora": corpora,
    }
    sizes = {name: corpus_size(prefix) for name, prefix in prefixes.items()}
    return solve(BlendConfig.model_validate(tree), sizes, after=after, after_step=at)


@pytest.fixture(scope="module")
def plans(prefixes):
    first = phase(prefixes, {"organic": {}}, 6)
    second = phase(prefixes, {"synthetic": {"share": 0.5}, "organic": {}}, 4, first, 4)
    return first, second


def run(out, plans, prefixes, steps, save_every=2):
    chain = Chain(plans)
    return train(
        settings(steps=steps, save_every=save_every, schedule=CONSTANT, keep_checkpoints=9),
        TINY,
        ChainedStreams(chain, prefixes),
        out,
        Progress(),
        data_hash=chain.hash_at,
        account=chain.at,
        dataset_names=[c.name for c in chain.plans[-1].corpora],
    )


def losses(out):
    return [(r["step"], r["loss"], r["grad_norm"]) for r in read_metrics(out / "metrics.jsonl")]


def test_a_phase_declared_later_trains_as_if_it_had_been_known_from_the_start(
    tmp_path, plans, prefixes
):
    known = run(tmp_path / "known", plans, prefixes, 8)
    run(tmp_path / "later", plans[:1], prefixes, 4)
    later = run(tmp_path / "later", plans, prefixes, 8)
    assert weights_hash(later.checkpoint) == weights_hash(known.checkpoint)
    assert losses(tmp_path / "later") == losses(tmp_path / "known")


def test_the_phases_that_are_done_need_not_be_given_again(tmp_path, plans, prefixes):
    known = run(tmp_path / "known", plans, prefixes, 8)
    run(tmp_path / "later", plans[:1], prefixes, 4)
    later = run(tmp_path / "later", plans[1:], prefixes, 8)
    assert weights_hash(later.checkpoint) == weights_hash(known.checkpoint)


def test_checkpoints_and_metrics_hold_the_plan_and_the_ledger_of_their_step(
    tmp_path, plans, prefixes
):
    run(tmp_path, plans, prefixes, 8)
    states = [read_state(path) for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert [(s.step, s.data_hash) for s in states] == [
        *((step, plans[0].hash) for step in (2, 4)),
        *((step, plans[1].hash) for step in (6, 8)),
    ]
    accounts = {s.step: s.account for s in states}
    assert accounts[4]["corpora"]["organic"]["windows_ever"] == 16
    assert accounts[8]["corpora"]["organic"]["windows_ever"] == 24
    assert accounts[8]["corpora"]["synthetic"]["windows"] == 8
    logged = {
        r["step"]: r["account"] for r in read_metrics(tmp_path / "metrics.jsonl") if "account" in r
    }
    assert logged == accounts


def test_an_undeclared_other_plan_is_refused(tmp_path, plans, prefixes):
    run(tmp_path, plans[:1], prefixes, 4)
    other = phase(prefixes, {"organic": {"share": 0.5}, "synthetic": {}}, 8)
    with pytest.raises(ConfigError, match=r"trained on other data.*\n.*--after"):
        run(tmp_path, [other], prefixes, 8)


def test_a_phase_that_begins_before_the_checkpoint_is_refused(tmp_path, plans, prefixes):
    run(tmp_path, plans[:1], prefixes, 6)  # the second phase leaves the first after step 4
    with pytest.raises(ConfigError, match="trained on other data"):
        run(tmp_path, plans, prefixes, 8)


def test_more_steps_are_refused_where_they_would_have_changed_the_learning_rate(
    tmp_path, plans, prefixes
):
    def cosine(chosen, steps):
        chain = Chain(chosen)
        return train(
            settings(steps=steps, schedule={"peak": 3e-3, "warmup_steps": 2}),
            TINY,
            ChainedStreams(chain, prefixes),
            tmp_path,
            Progress(),
            data_hash=chain.hash_at,
        )

    cosine(plans[:1], 4)
    with pytest.raises(ConfigError, match="steps: 4 before, 8 now: step 3 had rate"):
        cosine(plans, 8)
    with pytest.raises(ConfigError, match="steps: 4 before, 2 now, and 4 are done"):
        cosine(plans[:1], 2)


def test_a_ramp_takes_the_plans_windows_in_more_steps(tmp_path, plans, prefixes):
    plans[0].save(tmp_path / "plan.json")
    job = TrainJob(
        model=TINY.model_dump(),
        plans=(tmp_path / "plan.json",),
        data={"organic": prefixes["organic"]},
        training={
            "micro_batch_size": 1,
            "schedule": CONSTANT,
            "save_every": 1,
            "keep_checkpoints": 9,
            "batch_ramp": [{"batch": 1, "steps": 4}, {"batch": 2, "steps": 2}],
        },
    )
    result = run_job(job, tmp_path / "out", Progress(), where="train.yaml")
    assert (result.steps, result.tokens) == (4 + 2 + 4, 6 * 4 * 32)
    chain = Chain(plans[:1])
    states = [read_state(path) for path in sorted((tmp_path / "out" / "checkpoints").iterdir())]
    assert [s.step for s in states] == [4, 6, 7, 8, 9, 10]
    assert [s.account for s in states] == [chain.at(batches) for batches in range(1, 7)]
