import pytest
import torch

from megatron_synth.config import ConfigError
from megatron_synth.models import ModelConfig, build_model, count_parameters
from megatron_synth.models.attention import SdpaCoreAttention
from megatron_synth.models.build import transformer_config
from megatron_synth.runtime import ParallelConfig, initialize


@pytest.fixture(autouse=True)
def runtime():
    initialize(threads=1)


SMALL = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "ffn_hidden_size": 96}
DENSE = ModelConfig(**SMALL, vocab_size=256)
KINDS = {
    "dense": DENSE,
    "tied": DENSE.model_copy(update={"tie_embeddings": True}),
    "grouped": ModelConfig(
        **{**SMALL, "num_attention_heads": 4}, num_query_groups=2, vocab_size=256
    ),
    "qk_norm": DENSE.model_copy(update={"qk_norm": True}),
    "moe": ModelConfig(**SMALL, vocab_size=256, qk_norm=True, moe={"num_experts": 4, "top_k": 2}),
}


def loss_of(model, tokens, labels):
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    return model(input_ids=tokens, position_ids=positions, attention_mask=None, labels=labels)


@pytest.mark.parametrize("kind", KINDS)
def test_counted_parameters_are_the_built_ones(kind):
    model = build_model(KINDS[kind], sequence_length=16, seed=0)
    built = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(KINDS[kind]).total == built


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_sees_none_that_come_after_it(kind):
    model = build_model(KINDS[kind], sequence_length=16, seed=0).eval()
    tokens = torch.randint(0, 256, (2, 16))
    changed = tokens.clone()
    changed[:, 9:] = torch.randint(0, 256, (2, 7))
    with torch.no_grad():
        one, other = (loss_of(model, t, tokens) for t in (tokens, changed))
    assert torch.allclose(one[:, :9], other[:, :9], atol=1e-6)
    assert not torch.allclose(one[:, 9:], other[:, 9:], atol=1e-3)


def test_a_fresh_model_knows_nothing():
    model = build_model(DENSE, sequence_length=64, seed=0)
    tokens = torch.randint(0, 256, (4, 64))
    loss = loss_of(model, tokens, torch.randint(0, 256, (4, 64))).mean()
    assert float(loss) == pytest.approx(torch.log(torch.tensor(256.0)).item(), abs=0.1)


def test_initial_weights_depend_on_the_seed_alone():
    first, again, other = (
        build_model(KINDS["moe"], sequence_length=16, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    name = "decoder.layers.1.mlp.experts.local_experts.3.linear_fc1.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    sibling = name.replace("experts.3", "experts.2")
    assert not torch.equal(first[name], first[sibling])


def test_initial_weights_have_the_documented_spread():
    config = ModelConfig(preset="quickstart-1m")
    weights = build_model(config, sequence_length=16, seed=0).state_dict()
    layer = "decoder.layers.2."
    assert weights[layer + "mlp.linear_fc1.weight"].std() == pytest.approx(0.02, rel=0.02)
    into_residual = 0.02 / (2 * 4) ** 0.5
    assert weights[layer + "mlp.linear_fc2.weight"].std() == pytest.approx(into_residual, rel=0.02)
    assert torch.equal(weights[layer + "input_layernorm.weight"], torch.ones(128))


def test_padding_of_the_vocabulary_takes_no_part_in_the_loss():
    config = DENSE.model_copy(update={"vocab_size": 200})
    model = build_model(config, sequence_length=16, seed=0)
    tokens = torch.randint(0, 200, (2, 16))
    before = loss_of(model, tokens, tokens)
    with torch.no_grad():
        model.output_layer.weight[200:] += 5.0
    after = loss_of(model, tokens, tokens)
    assert torch.allclose(before, after, atol=1e-6)
    after.sum().backward()
    assert not model.output_layer.weight.grad[200:].any()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_is_the_softmax_that_the_formula_says(groups):
    config = ModelConfig(
        **{**SMALL, "num_attention_heads": 4}, num_query_groups=groups, vocab_size=256
    )
    transformer = transformer_config(config, ParallelConfig(), torch.float64)
    from megatron.core.transformer.enums import AttnMaskType

    attention = SdpaCoreAttention(transformer, 1, AttnMaskType.causal, "self")
    query = torch.randn(7, 2, 4, 16, dtype=torch.float64)
    key, value = torch.randn(2, 7, 2, groups, 16, dtype=torch.float64)
    repeated_key, repeated_value = (x.repeat_interleave(4 // groups, 2) for x in (key, value))
    scores = torch.einsum("sbhd,tbhd->bhst", query, repeated_key) / 16**0.5
    scores.masked_fill_(torch.ones(7, 7).triu(1).bool(), float("-inf"))
    expected = torch.einsum("bhst,tbhd->sbhd", scores.softmax(-1), repeated_value).flatten(2)
    assert torch.allclose(attention(query, key, value), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("config", "layout", "message"),
    [
        (DENSE, {"tensor_parallel": 4}, "num_attention_heads=2"),
        (DENSE, {"pipeline_parallel": 3}, "num_layers=2"),
        (
            DENSE,
            {"pipeline_parallel": 2, "pipeline_chunks": 2},
            "num_layers=2 .* x pipeline_chunks=4",
        ),
        (DENSE, {"pipeline_chunks": 2}, "there is one pipeline stage"),
        (DENSE, {"expert_parallel": 2}, "no experts"),
        (KINDS["moe"], {"expert_parallel": 3}, "num_experts=4"),
    ],
)
def test_a_layout_that_does_not_fit_the_model_is_refused(config, layout, message):
    with pytest.raises(ConfigError, match=message):
        transformer_config(config, ParallelConfig(**layout), torch.float32)
