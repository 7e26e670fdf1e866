import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from torch.utils.data import DataLoader

from megatron_synth.blending import BlendConfig, CorpusSize, Plan, corpus_size, solve
from megatron_synth.blending.index_files import IndexFolder
from megatron_synth.blending.sources import SelectConfig, SourceConfig
from megatron_synth.blending.stock.plan import require_stock_order_can, stock_corpora
from megatron_synth.blending.stock.streams import StockOptions, StockStreams, stock_evaluation
from megatron_synth.config import ConfigError, DataError, RunError

S, G = 16, 4


def planned(prefixes, corpora, **given):
    settings = {"sequence_length": S, "global_batch_size": G, "seed": 7, "order": "megatron"}
    config = BlendConfig.model_validate({**settings, **given, "corpora": corpora})
    return solve(config, {name: corpus_size(prefix) for name, prefix in prefixes.items()})


@pytest.fixture
def three(make_corpus):
    rng = np.random.default_rng(2)
    prefixes = {
        name: make_corpus(name, rng.integers(2, 40, documents).tolist(), first)
        for name, documents, first in (
            ("organic", 60, 1),
            ("unused", 10, 5_000),
            ("qa", 20, 10_000),
            ("sbp", 9, 20_000),
        )
    }
    corpora = {
        "organic": {"epochs": 1.5},
        "unused": {"epochs": 0},
        "qa": {"epochs": 3},
        "sbp": {},
    }
    return planned(prefixes, corpora, budget={"steps": 60}), prefixes


class Tokens:
    unique_identifiers = OrderedDict(name="by hand")
    vocab_size = None
    eod = 0


def by_hand(plan, prefixes, cache, names):
    """Stock's classes, constructed one by one as their builder does, in memory."""
    blend = [f"{prefixes[name]}_text_document" for name in names]
    windows = [plan.corpus(name).windows for name in names]
    config = GPTDatasetConfig(
        random_seed=plan.seed,
        sequence_length=plan.sequence_length,
        blend=(blend, windows),
        split="1,0,0",
        path_to_cache=None,
        tokenizer=Tokens(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    config.path_to_cache = str(cache)
    total = sum(windows)
    sizes = [math.ceil(total * (n / total)) for n in windows]
    datasets = []
    for prefix, size in zip(blend, sizes, strict=True):
        tokens = IndexedDataset(prefix)
        documents = np.arange(len(tokens.sequence_lengths), dtype=np.int32)
        count = math.ceil(size * 1.005) if len(names) > 1 else total
        datasets.append(GPTDataset(tokens, prefix, documents, count, Split.train, config))
    if len(names) == 1:
        return datasets[0]
    config.path_to_cache = None
    return BlendedDataset(datasets, windows, sum(sizes), config)


def same(left, right):
    return left.keys() == right.keys() and all(
        torch.equal(torch.as_tensor(left[key]), torch.as_tensor(right[key])) for key in left
    )


def test_a_blend_of_three_equals_the_stock_classes_sample_by_sample(three, tmp_path):
    plan, prefixes = three
    names = ["organic", "qa", "sbp"]
    stock = by_hand(plan, prefixes, tmp_path / "by_hand", names)
    streams = StockStreams(plan, prefixes, folder=IndexFolder(tmp_path / "cache"))
    assert isinstance(streams.dataset, BlendedDataset)
    assert len(streams) == plan.samples == 240 <= len(stock)
    ids = [[c.name for c in plan.corpora].index(name) for name in names]
    for number in range(len(streams)):
        expected = stock[number]
        expected["dataset_id"] = ids[int(expected["dataset_id"])]
        assert same(streams[number], expected), number
    assert min(plan.corpus(name).epochs for name in names[1:]) >= 3
    assert {streams[i]["dataset_id"] for i in range(len(streams))} == set(ids) == {0, 2, 3}


def test_a_single_corpus_equals_the_stock_class(three, tmp_path):
    _, prefixes = three
    plan = planned({"organic": prefixes["organic"]}, {"organic": {"epochs": 2.5}})
    stock = by_hand(plan, prefixes, tmp_path / "by_hand", ["organic"])
    streams = StockStreams(plan, prefixes, folder=IndexFolder(tmp_path / "cache"))
    assert isinstance(streams.dataset, GPTDataset)
    assert len(streams) == plan.samples
    for number in range(plan.samples):
        assert same(streams[number], {**stock[number], "dataset_id": 0}), number
    assert streams.counted(3) == {"organic": 3 * G}
    assert streams.epochs == {"organic": 3}


def test_windows_are_counted_from_what_is_served(three, tmp_path):
    plan, prefixes = three
    streams = StockStreams(plan, prefixes, folder=IndexFolder(tmp_path / "cache"))
    served = [streams[i]["dataset_id"] for i in range(plan.samples)]
    for step in (0, 1, 17, plan.steps):
        counted = streams.counted(step)
        assert list(counted) == [c.name for c in plan.corpora]
        assert list(counted.values()) == [served[: step * G].count(i) for i in range(4)]
    at_the_end = streams.counted(plan.steps)
    assert all(abs(at_the_end[c.name] - c.windows) <= 1 for c in plan.corpora)


def test_epochs_are_those_that_stock_makes(three, tmp_path):
    plan, prefixes = three
    streams = StockStreams(plan, prefixes, folder=IndexFolder(tmp_path / "cache"))
    made = {}
    for corpus, dataset in zip(stock_corpora(plan), streams.dataset.datasets, strict=True):
        made[corpus.name] = dataset._get_num_epochs(dataset._get_num_tokens_per_epoch())
        assert dataset.num_samples == corpus.built
        assert len(dataset.document_index) == corpus.epochs * len(dataset.indices)
    assert streams.epochs == made == {"organic": 2, "qa": 3, "sbp": 5}


@given(
    lengths=st.lists(st.integers(8, 30), min_size=12, max_size=40),
    epochs=st.floats(0.5, 6),
    surplus=st.sampled_from([0.0, 0.005, 0.1]),
)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_last_epoch_is_apart_exactly_where_stock_shuffles_it_apart(
    make_corpus, tmp_path, lengths, epochs, surplus
):
    prefixes = {"a": make_corpus("a", lengths), "b": make_corpus("b", [50, 60])}
    plan = planned(prefixes, {"a": {"epochs": epochs}, "b": {"epochs": 2}}, global_batch_size=1)
    corpus = stock_corpora(plan, surplus)[0]
    folder = IndexFolder(tmp_path / "cache")
    try:
        streams = StockStreams(plan, prefixes, options=StockOptions(surplus=surplus), folder=folder)
    except RunError as error:
        assert "surplus" in str(error) and surplus == 0
        return
    dataset = streams.dataset.datasets[0]
    assert dataset.num_samples == corpus.built
    assert len(dataset.document_index) == corpus.epochs * len(lengths)
    first = dataset.document_index[: corpus.mixed_epochs * len(lengths)]
    counts = np.bincount(first, minlength=len(lengths))
    assert counts.tolist() == [corpus.mixed_epochs] * len(lengths)
    windows = len(dataset.shuffle_index)
    if corpus.last_apart:
        border = ((corpus.epochs - 1) * sum(lengths) - 1) // S
        assert sorted(dataset.shuffle_index[:border]) == list(range(border))
    elif corpus.epochs > 1 and windows > 30:
        border = windows // corpus.epochs
        assert sorted(dataset.shuffle_index[:border]) != list(range(border))


def test_a_batch_can_be_collated_and_workers_open_files_for_themselves(three, tmp_path):
    plan, prefixes = three
    streams = StockStreams(plan, prefixes, folder=IndexFolder(tmp_path / "cache"))
    again = pickle.loads(pickle.dumps(streams))
    assert len(pickle.dumps(streams)) < 20_000
    assert all(same(again[i], streams[i]) for i in range(0, len(streams), 7))
    batches = list(DataLoader(streams, batch_size=G, num_workers=1))
    assert len(batches) == plan.steps
    assert batches[3]["tokens"].tolist() == [streams[i]["tokens"].tolist() for i in range(12, 16)]
    assert streams.__getitems__([5, 2])[1]["tokens"].tolist() == streams[2]["tokens"].tolist()
    for outside in (-1, len(streams)):
        with pytest.raises(IndexError):
            streams[outside]


def test_options_are_stocks(three, tmp_path):
    plan, prefixes = three
    options = StockOptions(eod=0, eod_mask_loss=True, create_attention_mask=True)
    sample = StockStreams(plan, prefixes, options=options, folder=IndexFolder(tmp_path / "cache"))[
        0
    ]
    assert sample["loss_mask"].tolist() == (sample["tokens"] != 0).float().tolist()
    assert sample["attention_mask"].shape == (1, S, S)
    padded = StockStreams(
        plan, prefixes, options=StockOptions(pad=0), folder=IndexFolder(tmp_path / "cache")
    )
    sample = padded[0]
    assert sample["loss_mask"].tolist() == (sample["labels"] != 0).float().tolist()


def test_a_corpus_made_again_at_the_same_path_gets_an_index_of_its_own(
    make_corpus, write_corpus, tmp_path
):
    prefix = make_corpus("a", [40] * 20)
    before = planned({"a": prefix}, {"a": {"epochs": 2}})
    cache = tmp_path / "cache"
    first = [
        s["tokens"].tolist() for s in StockStreams(before, {"a": prefix}, folder=IndexFolder(cache))
    ]
    # Twice the documents, half as long: stock's own key (path, samples, seed) stays the same.
    write_corpus(prefix, [[7] * 19 + [0] for _ in range(40)])
    with pytest.raises(DataError, match="not what was planned"):
        StockStreams(before, {"a": prefix}, folder=IndexFolder(cache))
    after = planned({"a": prefix}, {"a": {"epochs": 2}})
    assert (after.samples, after.seed) == (before.samples, before.seed)
    second = [
        s["tokens"].tolist() for s in StockStreams(after, {"a": prefix}, folder=IndexFolder(cache))
    ]
    assert {t for tokens in second for t in tokens} == {0, 7}
    assert first != second
    assert len(list(cache.glob("stock-*"))) == 2
    names = [
        {f.name for f in folder.iterdir() if f.name.endswith("document_index.npy")}
        for folder in cache.glob("stock-*")
    ]
    assert names[0] == names[1], "stock itself would have taken the old index"


def test_an_index_is_whole_or_absent(three, tmp_path):
    before = dist.is_initialized()  # by other tests
    plan, prefixes = three
    cache = tmp_path / "cache"
    streams = StockStreams(plan, prefixes, folder=IndexFolder(cache))
    whole = next(cache.glob("stock-*"))
    expected = [s["tokens"].tolist() for s in streams]
    half = whole.with_name(f".{whole.name}.partial")
    whole.rename(half)  # as a kill leaves it
    next(half.glob("*shuffle_index.npy")).write_bytes(b"half")
    again = StockStreams(plan, prefixes, folder=IndexFolder(cache))
    assert [s["tokens"].tolist() for s in again] == expected
    assert [p.name for p in cache.iterdir()] == [whole.name]
    assert dist.is_initialized() == before


def test_an_index_of_another_user_is_not_read(three, tmp_path, monkeypatch):
    plan, prefixes = three
    StockStreams(plan, prefixes, folder=IndexFolder(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 12_345)
    with pytest.raises(RunError, match="belongs to another user"):
        StockStreams(plan, prefixes, folder=IndexFolder(tmp_path))


def test_what_stock_cannot_do_is_refused(three, tmp_path):
    plan, prefixes = three

    def refused(plan, message):
        with pytest.raises(ConfigError, match=message):
            StockStreams(plan, prefixes, folder=IndexFolder(tmp_path))

    def with_organic(**changes):
        corpora = [
            c.model_copy(update=changes if c.name == "organic" else {}) for c in plan.corpora
        ]
        return plan.model_copy(update={"corpora": tuple(corpora)})

    refused(plan.model_copy(update={"order": "strict"}), "order strict")
    refused(plan.model_copy(update={"attention": "document"}), "attention: document")
    refused(plan.model_copy(update={"first_step": 5}), "phase that goes on after step 5")
    refused(with_organic(start=9), "phase .*organic")
    refused(with_organic(max_epochs=4.0), "no caps, .*organic.* max_epochs 4")
    refused(with_organic(reshuffle=False), "organic.* reshuffle: false")
    refused(with_organic(content_hash=None), "organic.* declared")
    source = SourceConfig(data=prefixes["organic"], order=Path("order.npy"))
    refused(with_organic(source=source), "no order of documents")
    select = SelectConfig(file=Path("scores.npy"), top=0.5)
    source = SourceConfig(data=prefixes["organic"], select=select)
    refused(with_organic(source=source), "no select of documents")
    prefixes = {k: v for k, v in prefixes.items() if k != "organic"}
    refused(plan, "'organic'.* nothing says where it lies")
    assert list(tmp_path.glob("stock-*")) == []
    require_stock_order_can(plan)


def test_a_plan_knows_where_its_corpora_lie(three, tmp_path):
    plan, prefixes = three
    corpora = [
        c.model_copy(update={"source": SourceConfig(data=prefixes[c.name])}) for c in plan.corpora
    ]
    placed = plan.model_copy(update={"corpora": tuple(corpora)})
    streams = StockStreams(placed, folder=IndexFolder(tmp_path))
    assert same(streams[3], StockStreams(plan, prefixes, folder=IndexFolder(tmp_path))[3])
    path = tmp_path / "plan.json"
    placed.save(path)
    assert same(StockStreams(Plan.load(path), folder=IndexFolder(tmp_path))[3], streams[3])


def test_blends_too_large_for_a_test_are_counted_as_stock_does():
    sizes = {"a": CorpusSize(3_000_000_000, 1_000_000, "a"), "b": CorpusSize(10**9, 1_000, "b")}
    config = BlendConfig.model_validate(
        {
            "budget": 10**11,
            "sequence_length": 4096,
            "global_batch_size": 512,
            "order": "megatron",
            "corpora": {"a": {"share": 0.7}, "b": {}},
        }
    )
    plan = solve(config, sizes)
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        _get_size_per_split_per_dataset,
    )
    from megatron.core.datasets.utils import normalize

    weights = normalize([c.windows for c in plan.corpora])
    expected = [n for [n] in _get_size_per_split_per_dataset(weights, [plan.samples], 0.005)]
    assert [c.built for c in stock_corpora(plan)] == expected


def test_evaluation_is_a_stock_dataset_over_the_whole_corpus(three, tmp_path):
    _, prefixes = three
    given = {"sequence_length": S, "seed": 1, "folder": IndexFolder(tmp_path)}
    one_epoch = stock_evaluation(prefixes["qa"], "valid", None, **given)
    assert isinstance(one_epoch, GPTDataset) and one_epoch.index_split is Split.valid
    tokens = corpus_size(prefixes["qa"]).tokens
    assert len(one_epoch) == (tokens - 1) // S
    several = stock_evaluation(prefixes["qa"], "test", 100, **given)
    assert several.index_split is Split.test and len(several) >= 100


RANK = """
import json, os, sys
from pathlib import Path
import torch, torch.distributed as dist
from megatron_synth.blending import Plan
from megatron_synth.blending.index_files import IndexFolder
from megatron_synth.blending.stock.streams import StockStreams
dist.init_process_group("gloo")
cache = Path(sys.argv[2]) / (f"node{os.environ['RANK']}" if sys.argv[3] == "nodes" else "shared")
try:
    streams = StockStreams(Plan.load(Path(sys.argv[1])), folder=IndexFolder(cache))
    tokens = [s["tokens"].tolist() for s in streams]
except Exception as error:
    tokens = f"{type(error).__name__}: {error}"
Path(sys.argv[2], f"{sys.argv[3]}-{dist.get_rank()}.json").write_text(json.dumps(tokens))
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["shared", "nodes", "broken"])
def test_ranks_build_once_a_node_and_read_the_same(three, tmp_path, layout):
    plan, prefixes = three
    corpora = [
        c.model_copy(update={"source": SourceConfig(data=prefixes[c.name])}) for c in plan.corpora
    ]
    plan = plan.model_copy(update={"corpora": tuple(corpora)})
    plan.save(tmp_path / "plan.json")
    if layout == "broken":
        (tmp_path / "shared").write_text("a file in the cache's place")
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = []
    for rank in range(2):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0" if layout == "nodes" else str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
        }
        arguments = [sys.executable, "-c", RANK, tmp_path / "plan.json", tmp_path, layout]
        ranks.append(subprocess.Popen([str(a) for a in arguments], env=environment))
    assert [process.wait(180) for process in ranks] == [0, 0]
    got = [json.loads((tmp_path / f"{layout}-{rank}.json").read_text()) for rank in range(2)]
    if layout == "broken":
        assert all("RunError" in text and "could not be built" in text for text in got)
        return
    alone = StockStreams(plan, folder=IndexFolder(tmp_path / "alone"))
    assert got[0] == got[1] == [s["tokens"].tolist() for s in alone]
    assert len(list(tmp_path.glob("node*/stock-*"))) == (2 if layout == "nodes" else 0)
    shutil.rmtree(tmp_path / "alone")
