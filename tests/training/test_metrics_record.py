"""What the records of the metrics hold, and their mirrors."""

import importlib.util
import sys
import types

import pytest
import torch
from tiny_training import TINY, Windows, settings

from megatron_synth.config import ConfigError
from megatron_synth.models import build_model, training_flops
from megatron_synth.models.config import MoEConfig
from megatron_synth.runs import Progress, read_metrics
from megatron_synth.runtime import initialize
from megatron_synth.training import train
from megatron_synth.training.expert_load import ExpertLoad
from megatron_synth.training.hardware import peak_flops
from megatron_synth.training.mirrors import figures_of

SPARSE = TINY.model_copy(update={"moe": MoEConfig(num_experts=4, top_k=2)})


def run(out, model=TINY, **other):
    streams = {k: other.pop(k) for k in ("dataset_names", "dataset_streams") if k in other}
    config = settings(**other)
    return train(config, model, Windows(400), out, Progress(), data_hash="d", **streams)


def records(out):
    return read_metrics(out / "metrics.jsonl")


def test_speed_is_in_operations_of_a_device_and_the_mfu_is_their_share_of_what_it_can_do(tmp_path):
    run(tmp_path, steps=2, logging={"peak_tflops": 0.5})
    for record in records(tmp_path):
        flops = training_flops(TINY, 4 * 32, 32) / record["seconds"]
        assert record["tflops_per_device"] == pytest.approx(flops / 1e12)
        assert record["mfu"] == pytest.approx(flops / 0.5e12)
        assert 50e6 < record["memory_bytes"] < 50e9


def test_without_a_known_peak_there_is_no_mfu(tmp_path):
    run(tmp_path, steps=2)
    assert all("mfu" not in record for record in records(tmp_path))


def test_the_loss_of_a_stream_is_the_mean_over_the_tokens_of_its_corpora(tmp_path):
    run(tmp_path, steps=2, dataset_names=["a", "b"], dataset_streams=["both", "both"])
    for record in records(tmp_path):
        assert set(record["loss_by_dataset"]) == {"a", "b"}
        assert record["loss_by_stream"] == {"both": pytest.approx(record["loss"], rel=1e-12)}


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA B200", 2250),
    ],
)
def test_what_common_devices_can_do_is_known_by_their_names(name, tflops):
    assert peak_flops(name) == pytest.approx(tflops * 1e12)


def test_what_an_unknown_device_can_do_is_not_guessed():
    assert peak_flops("Quadro K600") is None


def test_the_experts_load_is_that_of_the_routers_own_choices(tmp_path):
    initialize(threads=1)
    model = build_model(SPARSE, sequence_length=32, seed=3)
    load = ExpertLoad(model, 2, 4, 2)
    chosen = []
    for layer in model.decoder.layers:
        layer.mlp.router.register_forward_hook(lambda *a: chosen.append(a[2][1].sum(0).double()))
    batch = {"input_ids": torch.arange(64).reshape(2, 32), "attention_mask": None}
    model.train()
    model(position_ids=torch.arange(32).expand(2, 32), **batch)
    counts = torch.stack(chosen)
    shares = counts / counts.sum(1, keepdim=True)
    entropy = -(shares * shares.log2()).sum(1) / 2  # log2(4) is 2
    taken = load.take()
    assert taken["max_over_mean"] == pytest.approx(float(counts.max()) / 32)
    assert taken["entropy"] == pytest.approx(float(entropy.mean()))
    assert taken["dropped_tokens"] == 0
    model.eval()  # validation does not count
    model(position_ids=torch.arange(32).expand(2, 32), **batch)
    assert not load._counts.any()


def test_the_load_of_a_dropless_mixture_is_in_every_record(tmp_path):
    run(tmp_path, SPARSE, steps=3)
    for record in records(tmp_path):
        assert record["experts"]["dropped_tokens"] == 0
        assert 1 <= record["experts"]["max_over_mean"] <= 2  # top 2 of 4
        assert 0.5 <= record["experts"]["entropy"] <= 1


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="it is installed")
def test_a_mirror_whose_package_is_missing_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"tensorboard is not installed(.|\n)*pip install"):
        run(tmp_path / "out", logging={"tensorboard": True})
    assert not (tmp_path / "out").exists()


def test_the_mirrors_get_the_figures_of_every_record(tmp_path, monkeypatch):
    shown = []

    class Writer:
        def __init__(self, log_dir, purge_step):
            shown.append((log_dir, purge_step))

        def add_scalar(self, name, value, step):
            shown.append((name, value, step))

        def close(self):
            shown.append("closed")

    class Run:
        def log(self, figures, step):
            shown.append((step, figures))

        def finish(self):
            shown.append("finished")

    board = types.ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = Writer
    wandb = types.ModuleType("wandb")
    wandb.init = lambda **settings: shown.append(settings) or Run()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    run(tmp_path, steps=2, logging={"tensorboard": True, "wandb": "project"})
    assert shown[0] == (str(tmp_path / "tensorboard"), 1)
    assert (shown[1]["project"], shown[1]["resume"]) == ("project", "allow")
    for record in records(tmp_path):
        assert (record["step"], figures_of(record)) in shown
        assert ("loss", record["loss"], record["step"]) in shown
        assert ("loss_by_dataset/0", record["loss_by_dataset"]["0"], record["step"]) in shown
    assert shown[-2:] == ["closed", "finished"]
