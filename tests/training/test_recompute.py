"""Activations computed again instead of kept: the same numbers."""

import pytest
from megatron.core.transformer.transformer_layer import TransformerLayer
from tiny_training import TINY, Windows, settings

from megatron_synth.models import MoEConfig
from megatron_synth.runs import Progress, read_metrics
from megatron_synth.training import train


@pytest.mark.parametrize("moe", [None, MoEConfig(num_experts=4, top_k=2)], ids=["dense", "moe"])
def test_recomputing_changes_no_number_and_runs_every_layer_twice(moe, tmp_path, monkeypatch):
    passes = {}
    forward = TransformerLayer.forward

    def counted(layer, *args, **kwargs):
        passes[name] = passes.get(name, 0) + 1
        return forward(layer, *args, **kwargs)

    monkeypatch.setattr(TransformerLayer, "forward", counted)
    figures = {}
    for name, recompute in (("kept", False), ("again", True)):
        config = settings(steps=4, recompute=recompute)
        model = TINY.model_copy(update={"moe": moe})
        out = tmp_path / name
        train(config, model, Windows(400), out, Progress(), data_hash="tiny")
        figures[name] = [(r["loss"], r["grad_norm"]) for r in read_metrics(out / "metrics.jsonl")]
    assert figures["again"] == figures["kept"]
    assert passes["again"] == 2 * passes["kept"]
