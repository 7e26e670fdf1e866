import gc
import pickle
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from megatron.core.datasets.megatron_dataset import MegatronDataset
from torch.utils.data import DataLoader

from megatron_synth.blending import (
    BlendConfig,
    BlendedStreams,
    CorpusSize,
    collate,
    corpus_size,
    solve,
)
from megatron_synth.blending import windows as windows_module
from megatron_synth.blending.windows import CorpusWindows
from megatron_synth.config import ConfigError, DataError

S, G = 8, 4


def planned(prefixes, corpora, **settings):
    given = {"sequence_length": S, "global_batch_size": G, "seed": 3, **settings}
    config = BlendConfig.model_validate({**given, "corpora": corpora})
    return solve(config, {name: corpus_size(prefix) for name, prefix in prefixes.items()})


@pytest.fixture
def two(make_corpus):
    lengths = np.random.default_rng(1).integers(2, 30, 60).tolist()
    prefixes = {
        "organic": make_corpus("organic", lengths),
        "synthetic": make_corpus("synthetic", lengths[:20], first=10_000),
    }
    plan = planned(prefixes, {"synthetic": {"epochs": 1}, "organic": {}}, budget=1600)
    return plan, prefixes


def test_a_sample_is_megatron_cores_dict(two):
    plan, prefixes = two
    streams = BlendedStreams(plan, prefixes)
    sample = streams[0]
    assert len(streams) == plan.samples
    assert set(sample) == {"tokens", "labels", "loss_mask", "position_ids", "dataset_id"}
    kinds = {k: (v.dtype, tuple(v.shape)) for k, v in sample.items() if k != "dataset_id"}
    assert kinds == {
        "tokens": (torch.int64, (S,)),
        "labels": (torch.int64, (S,)),
        "loss_mask": (torch.float32, (S,)),
        "position_ids": (torch.int64, (S,)),
    }
    assert sample["labels"][:-1].tolist() == sample["tokens"][1:].tolist()
    assert sample["loss_mask"].tolist() == [1.0] * S
    assert sample["position_ids"].tolist() == list(range(S))
    assert issubclass(CorpusWindows, MegatronDataset)


def test_dataset_id_names_the_corpus_that_the_tokens_are_from(two):
    plan, prefixes = two
    synthetic = [c.name for c in plan.corpora].index("synthetic")
    for sample in BlendedStreams(plan, prefixes):
        tokens = sample["tokens"][sample["tokens"] != 0]
        assert bool((tokens >= 10_000).all()) == (sample["dataset_id"] == synthetic)
        assert bool((tokens < 10_000).all()) == (sample["dataset_id"] != synthetic)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=3, max_size=40),
    epochs=st.integers(1, 4),
    reshuffle=st.booleans(),
)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_each_epoch_serves_every_token_once_but_the_remainder(
    make_corpus, lengths, epochs, reshuffle
):
    tokens = sum(lengths)
    if tokens <= S:
        return
    prefixes = {"c": make_corpus("c", lengths)}
    plan = planned(prefixes, {"c": {"epochs": epochs, "reshuffle": reshuffle}}, global_batch_size=1)
    served = [tuple(s["tokens"].tolist()) for s in BlendedStreams(plan, prefixes)]
    whole = (tokens - 1) // S
    assert len(served) == epochs * whole
    by_epoch = [served[i : i + whole] for i in range(0, len(served), whole)]
    for epoch in by_epoch:
        words = Counter(t for window in epoch for t in window if t)
        assert not words or max(words.values()) == 1
        left_out = tokens - len(lengths) - len(words)  # EOS, which all documents share, apart
        assert left_out <= (tokens - 1) % S + 1
    if not reshuffle:
        assert all(epoch == by_epoch[0] for epoch in by_epoch)
    elif whole > 12:
        assert len({tuple(epoch) for epoch in by_epoch}) == epochs


def test_tokens_follow_each_other_as_in_the_documents(two):
    plan, prefixes = two
    for sample in BlendedStreams(plan, prefixes):
        for token, label in zip(sample["tokens"].tolist(), sample["labels"].tolist(), strict=True):
            assert token == 0 or label in (token + 1, 0)  # documents count upwards


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_worker_count_serves_the_same(two, workers):
    plan, prefixes = two
    streams = BlendedStreams(plan, prefixes)
    expected = torch.stack([streams[i]["tokens"] for i in range(40)])
    loader = DataLoader(
        torch.utils.data.Subset(streams, range(40)), batch_size=5, num_workers=workers
    )
    assert torch.equal(torch.cat([batch["tokens"] for batch in loader]), expected)


@pytest.mark.parametrize(("ranks", "micro"), [(1, 4), (2, 1), (2, 2), (4, 1)])
def test_ranks_together_serve_the_global_order(two, ranks, micro):
    plan, prefixes = two
    taken = []
    for rank in range(ranks):
        opened = BlendedStreams(plan, prefixes)  # every rank opens the files for itself
        for first in range(rank * micro, plan.samples, ranks * micro):  # as Megatron's sampler
            mine = range(first, first + micro)
            taken += [(i, opened[i]["tokens"].tolist()) for i in mine]
    streams = BlendedStreams(plan, prefixes)
    assert [t for _, t in sorted(taken)] == [s["tokens"].tolist() for s in streams]


def test_a_batch_is_its_samples_one_by_one(two):
    plan, prefixes = two
    streams = BlendedStreams(plan, prefixes)
    wanted = np.random.default_rng(0).permutation(plan.samples)[:60].tolist()
    together = streams.__getitems__(wanted)
    for i, sample in zip(wanted, together, strict=True):
        alone = streams[i]
        assert sample["dataset_id"] == alone["dataset_id"]
        assert torch.equal(sample["tokens"], alone["tokens"])
        assert torch.equal(sample["labels"], alone["labels"])


def test_a_resumed_run_goes_on_with_the_same_samples(two):
    plan, prefixes = two
    streams = BlendedStreams(plan, prefixes)
    before = [s["tokens"].tolist() for s in streams]
    again = BlendedStreams(type(plan).model_validate_json(plan.model_dump_json()), prefixes)
    assert [again[i]["tokens"].tolist() for i in range(30, 40)] == before[30:40]


def test_pickling_keeps_the_samples_and_not_the_state(two):
    plan, prefixes = two
    streams = BlendedStreams(plan, prefixes)
    first = streams[7]["tokens"].tolist()
    packed = pickle.dumps(streams)
    assert len(packed) < 20_000
    assert pickle.loads(packed)[7]["tokens"].tolist() == first


@pytest.mark.parametrize("workers", [0, 2])
def test_the_compact_batch_is_the_default_one(two, workers):
    streams = BlendedStreams(*two)
    settings = {"batch_size": 7, "num_workers": workers}
    pairs = zip(
        DataLoader(streams, collate_fn=collate, **settings),
        DataLoader(streams, **settings),
        strict=True,
    )
    for ours, default in pairs:
        assert list(ours) == list(default)
        for name, expected in default.items():
            assert ours[name].dtype == expected.dtype and torch.equal(ours[name], expected)
            assert ours[name].is_contiguous()
        ours["tokens"].fill_(-1)
        assert torch.equal(ours["labels"], default["labels"])


def test_the_compact_batch_leaves_other_samples_to_the_default(two):
    samples = BlendedStreams(*two).__getitems__([0, 1, 2])
    masked = [{**s, "loss_mask": s["loss_mask"] * (i != 1)} for i, s in enumerate(samples)]
    assert collate(masked)["loss_mask"].sum(1).tolist() == [S, 0, S]
    apart = [{**s, "max_seqlen": 3} for s in samples]
    assert collate(apart)["max_seqlen"].tolist() == [3, 3, 3]


def test_a_stream_that_goes_while_it_builds_ahead_takes_no_memory_from_the_thread(two, monkeypatch):
    """Megatron-Core's dataset closes its map when it goes; a kernel still reading would crash."""
    plan, prefixes = two
    held, release = [], threading.Event()

    def build(documents, *_):
        release.wait(20)
        held.append(documents.tokens)

    monkeypatch.setattr(windows_module, "is_ready", lambda *_, **__: False)
    monkeypatch.setattr(windows_module, "_build_ahead", build)
    streams = BlendedStreams(plan, prefixes)
    streams.__getitems__(list(range(len(streams))))
    del streams
    gc.collect()
    release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("epoch"):
            thread.join(20)
    assert held and set(held) <= {c.tokens for c in plan.corpora}


def test_changing_a_sample_changes_nothing_else(two):
    plan, prefixes = two
    streams = BlendedStreams(plan, prefixes)
    one, other = streams.__getitems__([0, 1])
    kept = other["tokens"].tolist(), one["labels"].tolist()
    one["tokens"].fill_(-1)
    assert (other["tokens"].tolist(), one["labels"].tolist()) == kept
    assert streams[0]["tokens"].min() >= 0


def test_past_the_end_is_an_index_error(two):
    streams = BlendedStreams(*two)
    for wrong in (len(streams), -1):
        with pytest.raises(IndexError):
            streams[wrong]


def test_documents_do_not_see_each_other_when_asked(make_corpus):
    prefixes = {"c": make_corpus("c", [3, 5, 4, 9, 2, 6, 3, 3, 7, 5])}
    plan = planned(prefixes, {"c": {"epochs": 1}}, attention="document", global_batch_size=1)
    for sample in BlendedStreams(plan, prefixes):
        tokens, cu_seqlens = sample["tokens"].tolist(), sample["cu_seqlens"]
        begins = [0] + [i + 1 for i, t in enumerate(tokens[:-1]) if t == 0]
        assert cu_seqlens.shape == (S + 1,) and cu_seqlens.dtype == torch.int32
        assert cu_seqlens.tolist() == begins + [S] * (S + 1 - len(begins))
        lengths = np.diff([*begins, S]).tolist()
        assert sample["max_seqlen"] == max(lengths)
        assert sample["position_ids"].tolist() == [p for n in lengths for p in range(n)]


def test_documents_of_several_sequences_are_one_document(tmp_path):
    builder = IndexedDatasetBuilder(str(tmp_path / "c.bin"), dtype=np.int32)
    for first in range(1, 200, 10):
        builder.add_document(torch.arange(first, first + 10), [4, 3, 3])
    builder.finalize(str(tmp_path / "c.idx"))
    prefixes = {"c": tmp_path / "c"}
    plan = planned(prefixes, {"c": {"epochs": 2}}, global_batch_size=1)
    assert plan.corpus("c").documents == 20
    for sample in BlendedStreams(plan, prefixes):
        for token, label in zip(sample["tokens"].tolist(), sample["labels"].tolist(), strict=True):
            assert label == token + 1 if token % 10 else label % 10 == 1


def test_a_corpus_without_a_prefix_is_refused(two):
    plan, prefixes = two
    with pytest.raises(ConfigError, match=r"'synthetic'.*\n.*'synthetik'"):
        BlendedStreams(plan, {"organic": prefixes["organic"], "synthetik": "x"})


def test_a_missing_file_is_refused(two, tmp_path):
    plan, prefixes = two
    with pytest.raises(DataError, match=r"no indexed dataset.*\n.*organic"):
        BlendedStreams(plan, {**prefixes, "organic": tmp_path / "organik"})


def test_other_data_than_planned_is_refused(two, make_corpus):
    plan, prefixes = two
    other = make_corpus("other", [10] * 50)
    with pytest.raises(DataError, match="not what was planned"):
        BlendedStreams(plan, {**prefixes, "organic": other})


def test_one_changed_token_is_refused(two):
    plan, prefixes = two
    data = prefixes["organic"].parent / "organic_text_document.bin"
    content = bytearray(data.read_bytes())
    content[40] ^= 1
    data.write_bytes(bytes(content))
    with pytest.raises(DataError, match="not what was planned: content"):
        BlendedStreams(plan, prefixes)


def test_a_plan_from_declared_counts_is_not_served(make_corpus):
    size = CorpusSize(tokens=400, documents=40)
    config = BlendConfig.model_validate(
        {"sequence_length": S, "global_batch_size": 1, "corpora": {"c": {"epochs": 1}}}
    )
    with pytest.raises(ConfigError, match="'c' is planned from declared counts"):
        BlendedStreams(solve(config, {"c": size}), {"c": make_corpus("c", [10] * 40)})
