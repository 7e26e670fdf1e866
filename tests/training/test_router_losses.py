"""The router's losses of an MoE keep their coefficients where tokens are masked."""

import pytest
import torch
from tiny_training import TINY, Windows

from megatron_synth.models import build_model
from megatron_synth.models.config import MoEConfig
from megatron_synth.runtime import initialize
from megatron_synth.training.batches import BatchPlan, read_batch
from megatron_synth.training.forward import run_batch
from megatron_synth.training.optimizer import wrap_for_training


class Masked(Windows):
    """Only the first `unmasked` of 32 positions count."""

    def __init__(self, unmasked):
        super().__init__(8)
        self.unmasked = unmasked

    def __getitem__(self, index):
        counts = (torch.arange(32) < self.unmasked).float()
        return {**super().__getitem__(index), "loss_mask": counts}


def router_gradient(unmasked, layers=2, **coefficients):
    """Of the first layer, float64 [experts, hidden]."""
    initialize(threads=1)
    config = TINY.model_copy(
        update={
            "num_layers": layers,
            "moe": MoEConfig(num_experts=4, top_k=2, **coefficients),
            "qk_norm": True,
        }
    )
    model = build_model(config, sequence_length=32, seed=1, dtype=torch.float64)
    wrapped = wrap_for_training(model)
    wrapped.train()
    wrapped.zero_grad_buffer()
    batches = read_batch(Masked(unmasked), BatchPlan(4, 2, 1, 0), 0, 32)
    run_batch(wrapped, batches, global_batch_size=4, sequence_length=32, train=True)
    return model.decoder.layers[0].mlp.router.weight.main_grad.double().clone()


@pytest.mark.parametrize("name", ["aux_loss", "z_loss"])
def test_masking_leaves_the_gradient_of_the_routers_losses_as_it_is(name):
    off = {"aux_loss": 0.0, "z_loss": 0.0}

    def of_the_router(unmasked):
        return router_gradient(unmasked, **{**off, name: 0.5}) - router_gradient(unmasked, **off)

    whole, quarter = of_the_router(32), of_the_router(8)
    assert whole.abs().max() > 1e-6
    assert torch.allclose(whole, quarter, rtol=1e-5, atol=1e-9)


def test_a_process_may_train_a_deeper_model_after_a_shallow_one():
    for layers in (1, 4):
        assert router_gradient(32, layers=layers).abs().sum() > 0
