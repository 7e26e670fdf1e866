"""What runs on a GPU without Transformer Engine, against the plain forms that it stands for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_synth.models import ModelConfig, build_model, specs
from megatron_synth.models.experts import GroupedExperts
from megatron_synth.models.losses import token_losses
from megatron_synth.runtime import initialize

MOE = ModelConfig(
    num_layers=2,
    hidden_size=64,
    num_attention_heads=2,
    ffn_hidden_size=96,
    vocab_size=256,
    qk_norm=True,
    moe={"num_experts": 8, "top_k": 2},
)


def loss_and_gradients(tokens, dtype):
    model = build_model(MOE, sequence_length=16, seed=0, dtype=dtype)
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    losses = model(
        input_ids=tokens, position_ids=positions, attention_mask=None, labels=tokens.roll(1, 1)
    )
    losses.mean().backward()
    gradients = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    return model, losses.detach(), gradients


def grouped(monkeypatch):
    monkeypatch.setattr(specs, "groups_experts", lambda transformer: True)


@pytest.mark.parametrize("length", [2, 16], ids=["experts without a token", "all experts"])
def test_grouped_experts_give_the_numbers_of_one_after_another(length, monkeypatch):
    initialize(threads=1)
    tokens = torch.randint(0, 256, (1 if length == 2 else 4, length))
    _, expected, wanted = loss_and_gradients(tokens, torch.float32)
    grouped(monkeypatch)
    model, losses, gradients = loss_and_gradients(tokens, torch.float32)
    assert isinstance(model.decoder.layers[0].mlp.experts, GroupedExperts)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6, msg=name)


def test_grouped_experts_have_the_parameters_of_sequential_ones(monkeypatch):
    initialize(threads=1)
    plain = build_model(MOE, sequence_length=16, seed=0).state_dict()
    grouped(monkeypatch)
    ours = build_model(MOE, sequence_length=16, seed=0).state_dict()
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[k], v) for k, v in plain.items() if torch.is_tensor(v))


@given(st.integers(1, 40), st.integers(0, 8), st.integers(0, 2**32 - 1))
def test_token_losses_are_the_cross_entropy_over_the_tokens_that_exist(vocabulary, padding, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 2, vocabulary + padding, generator=generator).requires_grad_()
    labels = torch.randint(0, vocabulary, (3, 2), generator=generator)
    losses = token_losses(logits, labels, vocabulary)
    expected = torch.nn.functional.cross_entropy(
        logits[..., :vocabulary].flatten(0, 1), labels.flatten(), reduction="none"
    ).view(3, 2)
    torch.testing.assert_close(losses, expected)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert not gradient[..., vocabulary:].any()
