import json
import os
from collections import OrderedDict
from fractions import Fraction

import pytest
import yaml
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.utils import get_blend_from_list, normalize

from megatron_synth.blending import BlendConfig, CorpusSize, corpus_size, solve
from megatron_synth.blending.sources import SelectConfig, SourceConfig
from megatron_synth.blending.stock.exports import export
from megatron_synth.config import ConfigError, DataError, RunError

S, G = 16, 4
KINDS = ("megatron", "megatron-per-split", "bridge", "nemo")


def planned(prefixes, corpora, **given):
    settings = {"sequence_length": S, "global_batch_size": G, "seed": 7}
    config = BlendConfig.model_validate({**settings, **given, "corpora": corpora})
    return solve(config, {name: corpus_size(prefix) for name, prefix in prefixes.items()})


@pytest.fixture
def three(make_corpus):
    prefixes = {
        name: make_corpus(name, [30] * n) for name, n in (("web", 90), ("qa", 20), ("o", 9))
    }
    corpora = {"web": {}, "o": {"epochs": 0}, "qa": {"epochs": 2, "max_epochs": 2}}
    return planned(prefixes, corpora, budget={"steps": 50}), prefixes


def parsed(kind, out):
    """What the stock reader makes of the file: blends of train, valid and test."""
    if kind == "megatron":
        return [get_blend_from_list(out.read_text().split()), None, None]
    if kind == "megatron-per-split":
        content = json.loads(out.read_text())
        return [get_blend_from_list(content[split]) for split in ("train", "valid", "test")]
    content = yaml.safe_load(out.read_text())
    if kind == "bridge":
        data = content["dataset"]
        assert data["data_path"] is None
        assert (data["blend"] is None) != (data["blend_per_split"] is None)
        blends = data["blend_per_split"] or [data["blend"], None, None]
        return [blend and tuple(blend) for blend in blends]
    paths = content["paths"]
    if isinstance(paths, list):
        return [get_blend_from_list(paths), None, None]
    return [get_blend_from_list(paths[split]) for split in ("train", "validation", "test")]


@pytest.mark.parametrize("kind", KINDS)
def test_stocks_own_reader_finds_planned_shares_and_absolute_paths(
    three, tmp_path, kind, monkeypatch
):
    plan, prefixes = three
    monkeypatch.chdir(tmp_path)
    relative = {name: os.path.relpath(prefix) for name, prefix in prefixes.items()}
    out = tmp_path / "exported"
    text = export(plan, kind, out, relative)
    (paths, weights), valid, test = parsed(kind, out)
    assert paths == [f"{prefixes[name]}_text_document" for name in ("web", "qa")]
    windows = [plan.corpus(name).windows for name in ("web", "qa")]
    assert weights == windows and sum(windows) == plan.samples
    assert normalize(weights) == [float(Fraction(n, plan.samples)) for n in windows]
    assert (valid, test) == (None, None)
    assert plan.hash[:12] in text
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_corpus_has_no_weight(three, tmp_path, kind):
    _, prefixes = three
    plan = planned({"web": prefixes["web"]}, {"web": {"epochs": 2}})
    export(plan, kind, tmp_path / "out", prefixes)
    assert parsed(kind, tmp_path / "out")[0] == ([f"{prefixes['web']}_text_document"], None)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_validation_and_test_have_corpora_of_their_own(three, make_corpus, tmp_path, kind):
    plan, prefixes = three
    valid, test = make_corpus("valid", [40] * 5), make_corpus("test", [40] * 5)
    out = tmp_path / "out"
    export(plan, kind, out, prefixes, validation=[valid], test=[test, valid])
    (_, weights), for_validation, for_test = parsed(kind, out)
    assert weights == [c.windows for c in plan.corpora if c.windows]
    assert [list(map(str, p)) for p in (for_validation[0], for_test[0])] == [
        [f"{valid}_text_document"],
        [f"{test}_text_document", f"{valid}_text_document"],
    ]
    assert for_validation[1] is None and for_test[1] is None
    text = export(plan, kind, out, prefixes, validation=[valid])
    assert parsed(kind, out)[1][0] == [f"{valid}_text_document"]
    if kind == "nemo":  # NeMo builds all three splits from a dict
        assert parsed(kind, out)[2] == parsed(kind, out)[1]
        assert "validation's stands for the other one" in text
    else:
        assert parsed(kind, out)[2] is None


def test_configs_hold_what_has_to_agree_with_the_plan(three, tmp_path):
    plan, prefixes = three
    export(plan, "bridge", tmp_path / "bridge.yaml", prefixes)
    bridge = yaml.safe_load((tmp_path / "bridge.yaml").read_text())
    assert bridge["dataset"]["seq_length"] == bridge["model"]["seq_length"] == S
    assert bridge["dataset"]["random_seed"] == 7
    assert bridge["dataset"]["split"] == "1,0,0"
    assert bridge["train"] == {"global_batch_size": G, "train_iters": 50}
    export(plan, "nemo", tmp_path / "nemo.yaml", prefixes, micro_batch_size=2, tokenizer="some/one")
    nemo = yaml.safe_load((tmp_path / "nemo.yaml").read_text())
    assert nemo["tokenizer"]["pretrained_model_name"] == "some/one"
    wanted = {
        "seq_length": S,
        "micro_batch_size": 2,
        "global_batch_size": G,
        "num_train_samples": 200,
        "seed": 7,
        "split": "1,0,0",
    }
    assert {key: nemo[key] for key in wanted} == wanted
    with pytest.raises(ConfigError, match="not a multiple of micro_batch_size 3"):
        export(plan, "nemo", tmp_path / "no.yaml", prefixes, micro_batch_size=3)


class Tokens:
    unique_identifiers = OrderedDict(name="by hand")
    vocab_size = None
    eod = 0


def served_by_stock(given, samples):
    """Windows of each corpus of Megatron-Core's own builder, of a config from `given`."""
    config = GPTDatasetConfig(**given, tokenizer=Tokens(), create_attention_mask=False)
    assert not config.mock
    builder = BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config)
    train, _, _ = builder.build()
    ids = [int(train[i]["dataset_id"]) for i in range(samples)]
    return [ids.count(index) for index in range(max(ids) + 1)]


def test_bridges_section_builds_the_planned_shares(three, tmp_path):
    """Bridge's GPTDatasetConfig is Megatron-Core's, with three names more."""
    plan, prefixes = three
    export(plan, "bridge", tmp_path / "out", prefixes)
    given = yaml.safe_load((tmp_path / "out").read_text())["dataset"]
    bridges = ("seq_length", "dataloader_type", "data_path")
    length, loader, path = (given.pop(name) for name in bridges)
    assert (length, loader, path) == (S, "single", None)
    served = served_by_stock({**given, "sequence_length": length}, plan.samples)
    for count, name in zip(served, ("web", "qa"), strict=True):
        assert abs(count - plan.corpus(name).windows) <= 1


NEMO_2_7 = {
    *("paths", "seq_length", "tokenizer", "micro_batch_size", "global_batch_size"),
    *("rampup_batch_size", "num_workers", "pin_memory", "persistent_workers"),
    *("reset_position_ids", "create_attention_mask", "reset_attention_mask", "eod_mask_loss"),
    *("seed", "split", "index_mapping_dir", "num_dataset_builder_threads", "num_train_samples"),
    *("num_val_samples", "num_test_samples", "dataloader_type", "init_consumed_samples"),
    *("init_global_step", "output_log", "dataset_cls", "mmap_bin_files"),
    "object_storage_cache_path",
}
"""Parameters of PreTrainingDataModule in nemo-toolkit 2.7.0."""


def test_nemos_arguments_are_those_of_its_data_module_and_build_the_planned_shares(three, tmp_path):
    plan, prefixes = three
    export(plan, "nemo", tmp_path / "out", prefixes, tokenizer="some/one")
    given = yaml.safe_load((tmp_path / "out").read_text())
    assert given.pop("_target_").endswith(".PreTrainingDataModule")
    assert set(given) <= NEMO_2_7
    config = {  # as PreTrainingDataModule makes it
        "random_seed": given["seed"],
        "sequence_length": given["seq_length"],
        "blend": list(get_blend_from_list(given["paths"])),
        "split": given["split"],
        **{n: given[n] for n in ("reset_position_ids", "reset_attention_mask", "eod_mask_loss")},
    }
    served = served_by_stock(config, given["num_train_samples"])
    for count, name in zip(served, ("web", "qa"), strict=True):
        assert abs(count - plan.corpus(name).windows) <= 1


def test_the_text_says_how_to_start_and_what_is_lost(three, tmp_path):
    plan, prefixes = three
    corpora = [c.model_copy(update={"reshuffle": c.name != "web"}) for c in plan.corpora]
    plan = plan.model_copy(update={"corpora": tuple(corpora)})
    text = export(plan, "megatron", tmp_path / "args.txt", prefixes)
    for words in (
        "--split 1,0,0 --eval-iters 0",
        "--train-samples 200 (or --train-iters 50) --seed 7",
        "--seq-length 16 --global-batch-size 4",
        "max_epochs of qa (2)",
        "reshuffle false of web",
        "0.5 % more",
        "qa: 74 windows, 37.00 %, 2 epochs planned; stock: 75 windows built from 2 epochs in one",
    ):
        assert words in text, text
    assert "stock's own, not the plan's" in text
    stock = plan.model_copy(update={"order": "megatron"})
    assert "the same windows at every step" in export(stock, "megatron", tmp_path / "m", prefixes)
    per_split = export(plan, "megatron-per-split", tmp_path / "s.json", prefixes)
    assert "without --split" in per_split and "--eval-iters 0" in per_split
    assert "limit_val_batches=0" in export(plan, "nemo", tmp_path / "n.yaml", prefixes)
    assert "eval_iters=0" in export(plan, "bridge", tmp_path / "b.yaml", prefixes)


def test_a_path_with_a_space_goes_only_where_it_can_be_held(make_corpus, tmp_path):
    prefix = make_corpus("two words", [30] * 9)
    plan = planned({"a": prefix}, {"a": {"epochs": 1}})
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"white space and knows no quotes: .*two words"):
        export(plan, "megatron", out, {"a": prefix})
    assert not out.exists()
    for kind in KINDS[1:]:
        export(plan, kind, out, {"a": prefix})
        assert parsed(kind, out)[0] == ([f"{prefix}_text_document"], None)


def test_a_path_that_a_reader_would_change_is_refused(make_corpus, tmp_path):
    (tmp_path / "${HOME}").mkdir()
    prefix = make_corpus("${HOME}/a", [30] * 9)
    plan = planned({"a": prefix}, {"a": {"epochs": 1}})
    for kind in ("bridge", "nemo"):
        with pytest.raises(ConfigError, match=r"takes .* for a reference"):
            export(plan, kind, tmp_path / "out", {"a": prefix})
    export(plan, "megatron", tmp_path / "out", {"a": prefix})


def test_quotes_and_other_alphabets_survive(make_corpus, tmp_path):
    prefix = make_corpus('d\'a: #"ß" {x}', [30] * 9)
    plan = planned({"a": prefix}, {"a": {"epochs": 1}})
    for kind in KINDS[1:]:
        export(plan, kind, tmp_path / "out", {"a": prefix})
        assert parsed(kind, tmp_path / "out")[0] == ([f"{prefix}_text_document"], None)


@pytest.mark.parametrize("kind", KINDS)
def test_what_no_stock_run_can_do_is_refused(three, tmp_path, kind):
    plan, prefixes = three
    out = tmp_path / "out"

    def refused(plan, message, prefixes=prefixes):
        with pytest.raises(ConfigError, match=message):
            export(plan, kind, out, prefixes)
        assert not out.exists()

    def with_web(**changes):
        corpora = [c.model_copy(update=changes if c.name == "web" else {}) for c in plan.corpora]
        return plan.model_copy(update={"corpora": tuple(corpora)})

    refused(plan.model_copy(update={"first_step": 3}), "a phase that goes on after step 3")
    refused(with_web(start=5), "a phase .*web")
    refused(plan.model_copy(update={"attention": "document"}), "attention: document")
    select = SelectConfig(file="scores.npy", top=0.5)
    refused(with_web(source=SourceConfig(data="x", select=select)), "select of documents.*'web'")
    refused(with_web(source=SourceConfig(data="x", order="o.npy")), "order of documents.*'web'")
    refused(with_web(content_hash=None), "'web' is planned from declared counts")
    refused(plan, "'web', but nothing says where it lies", {"qa": prefixes["qa"]})
    with pytest.raises(DataError, match="no indexed dataset"):
        export(plan, kind, out, {**prefixes, "web": tmp_path / "nowhere"})


def test_a_provisional_plan_is_refused_by_the_corpus_that_is_missing(make_corpus, tmp_path):
    config = BlendConfig.model_validate(
        {"sequence_length": S, "global_batch_size": G, "corpora": {"to_come": {"epochs": 1}}}
    )
    plan = solve(config, {"to_come": CorpusSize(10_000, 100)})
    with pytest.raises(ConfigError, match="'to_come'"):
        export(plan, "megatron", tmp_path / "out")
    with pytest.raises(ConfigError, match="'to_come' is planned from declared counts"):
        export(plan, "megatron", tmp_path / "out", {"to_come": make_corpus("a", [30] * 9)})


def test_wrong_uses_are_said_clearly(three, tmp_path):
    plan, prefixes = three
    with pytest.raises(ConfigError, match="Did you mean 'bridge'"):
        export(plan, "brigde", tmp_path / "out", prefixes)
    with pytest.raises(ConfigError, match="separate corpora"):
        export(plan, "megatron", tmp_path / "out", prefixes, validation=[prefixes["qa"]])
    with pytest.raises(RunError, match="cannot write"):
        export(plan, "megatron", tmp_path / "no folder" / "out", prefixes)


def test_a_plan_that_knows_its_corpora_needs_no_prefixes(three, tmp_path):
    plan, prefixes = three
    corpora = [
        c.model_copy(update={"source": SourceConfig(data=prefixes[c.name])}) for c in plan.corpora
    ]
    placed = plan.model_copy(update={"corpora": tuple(corpora)})
    export(placed, "megatron", tmp_path / "a")
    export(plan, "megatron", tmp_path / "b", prefixes)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
