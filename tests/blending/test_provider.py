import importlib.util
import inspect
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.core.datasets.utils import Split
from torch.utils.data import DataLoader

from megatron_synth.blending import BlendConfig, BlendedStreams, corpus_size, solve
from megatron_synth.blending.index_files import IndexFolder
from megatron_synth.blending.stock.provider import blend_provider
from megatron_synth.blending.stock.streams import StockOptions, StockStreams
from megatron_synth.config import ConfigError, DataError

S, G = 16, 8
KEYS = {"tokens", "labels", "loss_mask", "position_ids", "dataset_id"}


def planned(prefixes, corpora, after=None, **given):
    settings = {"sequence_length": S, "global_batch_size": G, "seed": 7}
    config = BlendConfig.model_validate({**settings, **given, "corpora": corpora})
    sizes = {name: corpus_size(prefix) for name, prefix in prefixes.items()}
    return solve(config, sizes, after=after)


def arguments(**given):
    """Of Megatron-LM's namespace what matters, as its parser leaves it."""
    return SimpleNamespace(
        **{
            "seq_length": S,
            "global_batch_size": G,
            "dataloader_type": "single",
            "rampup_batch_size": None,
            "phase_transition_iterations": None,
            "data_path": None,
            "create_attention_mask_in_dataloader": False,
            "dataloader_inter_document_masking": False,
            "eod_mask_loss": False,
            "reset_position_ids": False,
            "reset_attention_mask": False,
            "sft": False,
            "consumed_train_samples": 0,
            "iteration": 0,
            "save": None,
            "load": None,
            **given,
        }
    )


@pytest.fixture
def two(make_corpus):
    lengths = np.random.default_rng(1).integers(2, 40, 90).tolist()
    return {"web": make_corpus("web", lengths), "qa": make_corpus("qa", lengths[:20], 10_000)}


def provide(plans, args, samples=(320, 0, 0), **given):
    return blend_provider(plans, lambda: args, **given)(list(samples))


CORPORA = {"web": {}, "qa": {"epochs": 2}}
STEPS = {"budget": {"steps": 40}}


def test_training_samples_are_the_plans(two):
    plan = planned(two, CORPORA, **STEPS)
    train, valid, test = provide([plan], arguments(), prefixes=two)
    streams = BlendedStreams(plan, two)
    assert (valid, test) == (None, None)
    assert len(train) == plan.samples == 320
    assert train.split is Split.train
    for number in (0, 1, 77, 319):
        sample = train[number]
        assert set(sample) == KEYS
        assert torch.equal(sample["tokens"], streams[number]["tokens"])
        assert sample["dataset_id"] == streams[number]["dataset_id"]


def test_it_is_what_pretrain_calls():
    signature = inspect.signature(blend_provider(_any_plan(), arguments))
    assert list(signature.parameters) == ["train_val_test_num_samples", "vp_stage"]
    assert signature.parameters["vp_stage"].default is None
    assert blend_provider(_any_plan(), arguments).is_distributed is True


def _any_plan():
    from megatron_synth.blending import CorpusSize

    config = BlendConfig.model_validate(
        {"sequence_length": S, "global_batch_size": G, "corpora": {"a": {"epochs": 1}}}
    )
    return [solve(config, {"a": CorpusSize(10_000, 10, "a")})]


@pytest.mark.parametrize(("ranks", "micro"), [(1, 8), (2, 2), (4, 1)])
def test_megatrons_sampler_gives_each_global_batch_to_the_ranks(two, ranks, micro):
    """Its rule: consecutive items, `micro` to each rank in turn, G in all a step."""
    plan = planned(two, CORPORA, **STEPS)
    train, _, _ = provide([plan], arguments(), prefixes=two)
    consumed = 3 * G

    def batches(rank):
        for first in range(consumed, len(train) - micro * ranks + 1, micro * ranks):
            yield list(range(first + rank * micro, first + (rank + 1) * micro))

    loaders = [iter(DataLoader(train, batch_sampler=list(batches(r)))) for r in range(ranks)]
    streams = BlendedStreams(plan, two)
    for step in range(3, 6):
        rows = [
            next(loader)["tokens"].tolist()
            for _ in range(G // micro // ranks)
            for loader in loaders
        ]
        got = [row for batch in rows for row in batch]
        assert got == [streams[i]["tokens"].tolist() for i in range(step * G, (step + 1) * G)]


def test_document_attention_is_in_the_types_of_stocks_inter_document_masking(two):
    plan = planned(two, CORPORA, attention="document", **STEPS)
    args = arguments(dataloader_inter_document_masking=True)
    train, _, _ = provide([plan], args, prefixes=two)
    batch = next(iter(DataLoader(train, batch_size=4)))
    assert (batch["cu_seqlens"].dtype, batch["max_seqlen"].dtype) == (torch.int32, torch.int32)
    assert (tuple(batch["cu_seqlens"].shape), tuple(batch["max_seqlen"].shape)) == (
        (4, S + 1),
        (4,),
    )
    widths = torch.diff(batch["cu_seqlens"], dim=1).max(dim=1).values
    assert torch.equal(widths, batch["max_seqlen"])
    with pytest.raises(ConfigError, match="--dataloader-inter-document-masking: is not set"):
        provide([plan], arguments(), prefixes=two)


def test_a_run_in_phases_is_one_dataset(two, tmp_path):
    first = planned(two, CORPORA, **STEPS)
    second = planned(two, {"web": {}, "qa": {"share": 0.5}}, after=first, budget={"steps": 10})
    total = 50 * G
    args = arguments(iteration=30, consumed_train_samples=30 * G)
    train, _, _ = provide([first, second], args, (total, 0, 0), prefixes=two)
    assert len(train) == total
    streams = BlendedStreams(second, two)
    assert torch.equal(train[40 * G + 5]["tokens"], streams[5]["tokens"])
    later = arguments(iteration=40, consumed_train_samples=40 * G)
    alone, _, _ = provide([second], later, (total, 0, 0), prefixes=two)
    assert torch.equal(alone[40 * G + 5]["tokens"], streams[5]["tokens"])
    with pytest.raises(ConfigError, match="stands at sample 240, the first plan begins at 320"):
        provide([second], args, (total, 0, 0), prefixes=two)


def test_stock_order_goes_through_the_provider_too(two, tmp_path):
    plan = planned(two, CORPORA, order="megatron", **STEPS)
    folder = IndexFolder(tmp_path / "index")
    options = StockOptions(eod=0, eod_mask_loss=True)
    args = arguments(eod_mask_loss=True)
    train, _, _ = provide([plan], args, prefixes=two, options=options, folder=folder)
    stock = StockStreams(plan, two, options=options, folder=folder)
    assert all(torch.equal(train[i]["tokens"], stock[i]["tokens"]) for i in range(len(train)))
    assert torch.equal(train[3]["loss_mask"], (train[3]["tokens"] != 0).float())
    with pytest.raises(ConfigError, match="--eod-mask-loss: is not set"):
        provide([plan], arguments(), prefixes=two, options=options, folder=folder)


def test_phases_in_stock_order_are_refused(two):
    first = planned(two, CORPORA, order="megatron", **STEPS)
    with pytest.raises(ConfigError, match="order: megatron, which keeps no account"):
        planned(two, CORPORA, after=first, order="megatron", budget={"steps": 10})
    strict = planned(two, CORPORA, **STEPS)
    second = planned(two, CORPORA, after=strict, budget={"steps": 10})
    second = second.model_copy(update={"previous": first.hash})
    with pytest.raises(ConfigError, match="the phases differ in order"):
        blend_provider([first, second], arguments, prefixes=two)


def test_validation_and_test_are_stock_datasets(two, make_corpus, tmp_path):
    plan = planned(two, CORPORA, **STEPS)
    held_out = make_corpus("held_out", [30] * 40)
    given = {"prefixes": two, "validation": held_out, "test": held_out}
    folder = IndexFolder(tmp_path / "index")
    _, valid, test = provide([plan], arguments(), (320, 200, 40), folder=folder, **given)
    assert isinstance(valid, GPTDataset) and isinstance(test, GPTDataset)
    assert (valid.index_split, test.index_split) == (Split.valid, Split.test)
    assert len(valid) >= 200 and set(valid[0]) == KEYS - {"dataset_id"}
    _, once, none = provide([plan], arguments(), (320, None, 0), folder=folder, **given)
    assert len(once) == (30 * 40 - 1) // S and none is None
    with pytest.raises(ConfigError, match="no corpus for that"):
        provide([plan], arguments(), (320, 200, 40), prefixes=two)


def test_ranks_that_need_no_data_get_none(two):
    plan = planned(two, CORPORA, **STEPS)
    provider = blend_provider(
        [plan], arguments, prefixes=two, is_built_on_rank=lambda vp_stage: vp_stage == 1
    )
    assert provider([320, 0, 0]) == (None, None, None)
    assert partial(provider, vp_stage=1)([320, 0, 0])[0] is not None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seq_length": 32}, "--seq-length: is 32, the plan needs 16"),
        ({"global_batch_size": 4}, "--global-batch-size: is 4, the plan needs 8"),
        ({"dataloader_type": "cyclic"}, "--dataloader-type: is cyclic, the plan needs single"),
        ({"rampup_batch_size": [2, 2, 8]}, "--rampup-batch-size"),
        ({"phase_transition_iterations": [20]}, "--phase-transition-iterations"),
        ({"data_path": ["x"]}, "--data-path: is set, but the plan says"),
        ({"eod_mask_loss": True}, "--eod-mask-loss: is set"),
        ({"reset_position_ids": True}, "--reset-position-ids: is set"),
        ({"sft": True}, "--sft: is set"),
        ({"dataloader_inter_document_masking": True}, "inter-document-masking: is set"),
        (
            {"create_attention_mask_in_dataloader": True},
            r"(?s)--no-create-attention-mask-in-dataloader: is not set.*Set --no-create",
        ),
    ],
)
def test_arguments_that_are_not_the_plans_are_refused(two, given, message):
    plan = planned(two, CORPORA, **STEPS)
    with pytest.raises(ConfigError, match=message):
        provide([plan], arguments(**given), prefixes=two)


def test_another_number_of_samples_is_refused_with_the_right_one(two):
    plan = planned(two, CORPORA, **STEPS)
    for samples in (319, 328, 640, None):
        with pytest.raises(
            ConfigError, match=r"(?s)asks for .*--train-samples 320 .*--train-iters 40"
        ):
            provide([plan], arguments(), (samples, 0, 0), prefixes=two)


def test_a_resume_with_an_undeclared_other_plan_is_refused(two, tmp_path):
    save = tmp_path / "checkpoints"
    first = planned(two, CORPORA, **STEPS)
    other = planned(two, {"web": {}, "qa": {"epochs": 1}}, **STEPS)
    provide([first], arguments(save=save), prefixes=two)
    resumed = arguments(save=save, load=save, iteration=10, consumed_train_samples=80)
    provide([first], resumed, prefixes=two)
    with pytest.raises(ConfigError, match=f"step 10 was trained by plan {first.hash[:12]}"):
        provide([other], resumed, prefixes=two)
    provide([other], arguments(load=save), prefixes=two)  # --finetune: iteration 0
    second = planned(two, CORPORA, after=first, budget={"steps": 10})
    declared = {**vars(resumed), "iteration": 40, "consumed_train_samples": 320}
    provide([second], arguments(**declared), (400, 0, 0), prefixes=two)
    record = json.loads((save / "blend_plans.json").read_text())
    assert record["phases"] == [
        {"first_step": 0, "plan": first.hash, "order": ""},
        {"first_step": 40, "plan": second.hash, "order": ""},
    ]
    later = {**declared, "iteration": 45, "consumed_train_samples": 360}
    provide([second], arguments(**later), (400, 0, 0), prefixes=two)
    (save / "blend_plans.json").write_text("{}")
    with pytest.raises(DataError, match="not a record of plans"):
        provide([second], arguments(**later), (400, 0, 0), prefixes=two)


def test_changed_data_is_refused(two, make_corpus):
    plan = planned(two, CORPORA, **STEPS)
    make_corpus("qa", [30] * 50)
    with pytest.raises(DataError, match="not what was planned"):
        provide([plan], arguments(), prefixes=two)


def test_the_example_can_be_imported_without_megatron_lm():
    path = Path(__file__).parents[2] / "examples" / "pretrain_gpt_blend.py"
    spec = importlib.util.spec_from_file_location("pretrain_gpt_blend", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import argparse

    parser = module.add_blend_arguments(argparse.ArgumentParser())
    args = parser.parse_args(["--blend-plan", "a.json", "b.json", "--blend-valid", "v"])
    assert args.blend_plan == [Path("a.json"), Path("b.json")]
    assert args.blend_valid == Path("v") and args.blend_test is None


def test_a_resume_with_other_options_of_stock_is_refused(two, tmp_path):
    save, folder = tmp_path / "checkpoints", IndexFolder(tmp_path / "index")
    plan = planned(two, CORPORA, order="megatron", **STEPS)
    provide([plan], arguments(save=save), prefixes=two, folder=folder)
    resumed = arguments(save=save, load=save, iteration=10, consumed_train_samples=80)
    provide([plan], resumed, prefixes=two, folder=folder)
    with pytest.raises(ConfigError, match="step 10 was trained with other options"):
        options = StockOptions(surplus=0.01)
        provide([plan], resumed, prefixes=two, folder=folder, options=options)
