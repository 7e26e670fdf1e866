import numpy as np
import pytest

from megatron_synth.blending import (
    BlendConfig,
    BlendedStreams,
    Chain,
    ChainedStreams,
    Ledger,
    corpus_size,
    solve,
    streams,
)
from megatron_synth.config import ConfigError

S, G = 8, 4


@pytest.fixture
def prefixes(make_corpus):
    lengths = np.random.default_rng(2).integers(2, 30, 40).tolist()
    return {n: make_corpus(n, lengths[i:], 1000 * i + 1) for i, n in enumerate("ab")}


def phase(prefixes, corpora, steps, after=None, at=None, **settings):
    tree = {"sequence_length": S, "global_batch_size": G, "budget": {"steps": steps}, **settings}
    config = BlendConfig.model_validate({**tree, "corpora": corpora})
    sizes = {name: corpus_size(prefix) for name, prefix in prefixes.items()}
    return solve(config, sizes, after=after, after_step=at)


@pytest.fixture
def plans(prefixes):
    first = phase(prefixes, {"a": {}}, 6)
    second = phase(prefixes, {"b": {"share": 0.25}, "a": {}}, 5, first, 4)
    third = phase(prefixes, {"b": {}}, 3, second)
    return first, second, third


def test_each_step_is_served_by_its_phase(plans, prefixes):
    chain = Chain(plans)
    assert (chain.first_step, chain.steps, chain.batch) == (0, 12, G)
    assert [chain.phase(step) for step in range(1, 13)] == [0] * 4 + [1] * 5 + [2] * 3
    streams = ChainedStreams(chain, prefixes)
    alone = [BlendedStreams(plan, prefixes) for plan in plans]
    expected = [
        *(alone[0][i] for i in range(4 * G)),
        *(alone[1][i] for i in range(5 * G)),
        *(alone[2][i] for i in range(3 * G)),
    ]
    assert len(streams) == len(expected)
    for i, sample in enumerate(expected):
        assert streams[i]["tokens"].tolist() == sample["tokens"].tolist()
        assert streams[i]["dataset_id"] == sample["dataset_id"]
    mixed = np.random.default_rng(0).permutation(len(streams)).tolist()
    for i, sample in zip(mixed, streams.__getitems__(mixed), strict=True):
        assert sample["tokens"].tolist() == expected[i]["tokens"].tolist()


def test_a_chain_may_begin_at_a_later_phase(plans, prefixes):
    whole, rest = ChainedStreams(Chain(plans), prefixes), ChainedStreams(Chain(plans[1:]), prefixes)
    assert len(rest) == len(whole)
    for i in range(4 * G, len(whole)):
        assert rest[i]["tokens"].tolist() == whole[i]["tokens"].tolist()
    for outside in (-1, 4 * G - 1, len(whole)):
        with pytest.raises(IndexError):
            rest[outside]


def test_the_hash_at_a_step_is_that_of_the_plan_that_served_it(plans):
    chain = Chain(plans)
    first, second, third = (plan.hash for plan in plans)
    assert [chain.hash_at(step) for step in (0, 1, 4, 5, 9, 10, 12)] == [
        *(first, first, first, second, second, third, third)
    ]
    assert Chain(plans[1:]).hash_at(4) == first
    for outside in (3, 13):
        with pytest.raises(ConfigError, match=rf"step {outside} is not of these phases.*5 to 12"):
            Chain(plans[1:]).hash_at(outside)


def test_the_ledger_goes_through_all_phases(plans):
    chain = Chain(plans)
    served = [chain.at(step)["corpora"] for step in range(13)]
    total = [sum(c["windows_ever"] for c in corpora.values()) for corpora in served]
    assert total == [G * step for step in range(13)]
    assert chain.at(9)["plan"] == plans[1].hash and chain.at(9)["step"] == 9
    assert (chain.at(9)["samples"], chain.at(9)["samples_ever"]) == (5 * G, 9 * G)
    assert chain.at(9)["tokens_ever"] == 9 * G * S
    assert chain.at(12)["corpora"] == Ledger(plans[2]).at(3)["corpora"]


def test_plans_that_do_not_follow_each_other_are_refused(plans, prefixes):
    first, second, third = plans
    for wrong in ((first, third), (second, first), (first, first)):
        with pytest.raises(ConfigError, match="does not follow plan"):
            Chain(wrong)
    wider = phase(prefixes, {"a": {}}, 2, first, global_batch_size=2 * G)
    with pytest.raises(ConfigError, match="global_batch_size changes from 4 to 8 at step 6"):
        Chain((first, wider))


def test_each_corpus_is_looked_at_once_however_many_phases_there_are(plans, prefixes, monkeypatch):
    looked = []
    real = streams.measure
    monkeypatch.setattr(
        streams, "measure", lambda source, **k: looked.append(source.data) or real(source, **k)
    )
    ChainedStreams(Chain(plans), prefixes)
    assert len(looked) == len(set(looked)) == 2
