"""Hugging Face folders as models of ours: there and back, and what is refused."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_rank_weights
from safetensors.torch import load_file, save_file

from megatron_synth.config import ConfigError, DataError
from megatron_synth.models import (
    PRESETS,
    ModelConfig,
    build_model,
    load_whole_weights,
    read_hugging_face,
    write_hugging_face,
)
from megatron_synth.runtime import initialize

SMALL = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "ffn_hidden_size": 96,
    "vocab_size": 330,  # padded to 384
}
EXPERTS = {"num_experts": 4, "top_k": 2}
KINDS = {
    "LlamaForCausalLM": ModelConfig(**SMALL, num_query_groups=2, rope_base=5e5),
    "Qwen3ForCausalLM": ModelConfig(**SMALL, num_query_groups=2, head_dim=32, qk_norm=True),
    "Qwen3MoeForCausalLM": ModelConfig(**SMALL, qk_norm=True, moe=EXPERTS),
    "Olmo2ForCausalLM": ModelConfig(
        **SMALL, num_query_groups=2, block="post_norm", qk_norm="projection", norm_eps=1e-6
    ),
    "OlmoeForCausalLM": ModelConfig(**SMALL, qk_norm="projection", moe=EXPERTS),
    "tied": ModelConfig(**SMALL, tie_embeddings=True),
}
PADDED = ("embedding.word_embeddings.weight", "output_layer.weight")


def shrunk(preset):
    """A preset with all its settings but small sizes, the ratio of heads to groups kept."""
    config = ModelConfig(preset=preset)
    groups = 4 * config.query_groups // config.num_attention_heads
    small = {**SMALL, "num_query_groups": max(1, groups)}
    if config.moe:
        small["moe"] = config.moe.model_copy(update={"num_experts": 8, "top_k": 3})
    return ModelConfig(preset=preset, **small)


def build(config, dtype=torch.float32, seed=3):
    initialize(threads=1)
    model = build_model(config, sequence_length=64, seed=seed, dtype=dtype, gather_logits=True)
    with torch.no_grad():  # norms of 1 and tiny weights would hide a wrong place
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def logits_of(model, tokens):
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    with torch.no_grad():
        return model(input_ids=tokens, position_ids=positions, attention_mask=None)[..., :330]


def rewrite(folder, **changed):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def folder(tokenizer_folder, tmp_path):
    """Writes a tiny model's folder, by its kind, and gives its path."""

    def write(kind="LlamaForCausalLM"):
        config = KINDS[kind]
        out = tmp_path / kind
        write_hugging_face(
            build(config).state_dict(), config, tokenizer_folder, out, max_positions=64
        )
        return out

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_changes_nothing(kind, folder):
    written = folder(kind)
    config, weights = read_hugging_face(written)
    assert config.shape == KINDS[kind].shape
    original = {
        name: value
        for name, value in build(KINDS[kind]).state_dict().items()
        if isinstance(value, torch.Tensor)
    }
    assert weights.keys() == original.keys()
    for name, value in original.items():
        real = slice(330 if name in PADDED else None)
        assert torch.equal(weights[name][real], value[real]), name
        assert weights[name].shape == value.shape
        assert name not in PADDED or not weights[name][330:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_saves_gives_its_logits(kind, folder, tmp_path):
    """In shards, by transformers' own hand, and into a fresh model by its global names."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder(kind), dtype=torch.float32).eval()
    theirs.save_pretrained(tmp_path / "saved", max_shard_size="200KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    config, weights = read_hugging_face(tmp_path / "saved")
    model = build(config, seed=8)
    load_whole_weights(model, weights)
    tokens = torch.randint(0, 330, (2, 40))
    with torch.no_grad():
        expected = theirs(tokens).logits
    torch.testing.assert_close(logits_of(model, tokens), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_shrunk_has_the_logits_of_transformers(preset, tokenizer_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    config = shrunk(preset)
    model = build(config)
    write_hugging_face(model.state_dict(), config, tokenizer_folder, tmp_path, max_positions=64)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert theirs.config.architectures[0] in KINDS
    tokens = torch.randint(0, 330, (2, 40))
    with torch.no_grad():
        expected = theirs(tokens).logits
    torch.testing.assert_close(logits_of(model, tokens), expected, atol=2e-5, rtol=1e-4)
    assert read_hugging_face(tmp_path)[0].shape == config.shape


def test_a_config_of_transformers_4_is_read_with_its_defaults(folder):
    written = folder()
    described = json.loads((written / "config.json").read_text())
    for name in ("rms_norm_eps", "head_dim", "rope_scaling", "attention_bias", "hidden_act"):
        described.pop(name)
    (written / "config.json").write_text(json.dumps(described))
    config, _ = read_hugging_face(written)
    assert (config.norm_eps, config.rope_base, config.size_of_head) == (1e-6, 5e5, 16)


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("LlamaForCausalLM", {"architectures": ["MistralForCausalLM"]}, "Mistral.*OlmoeForCausal"),
        ("LlamaForCausalLM", {"attention_bias": True}, "attention_bias=True is not supported"),
        ("LlamaForCausalLM", {"hidden_act": "gelu"}, "hidden_act=gelu"),
        (
            "LlamaForCausalLM",
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "positions are scaled .linear",
        ),
        ("Qwen3ForCausalLM", {"use_sliding_window": True}, "use_sliding_window"),
        ("Qwen3MoeForCausalLM", {"norm_topk_prob": True}, "norm_topk_prob=True"),
        ("Qwen3MoeForCausalLM", {"mlp_only_layers": [1]}, "mlp_only_layers"),
        ("OlmoeForCausalLM", {"clip_qkv": 8.0}, "clip_qkv=8.0"),
    ],
)
def test_a_model_of_another_kind_is_refused(kind, changed, message, folder):
    written = folder(kind)
    rewrite(written, **changed)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        read_hugging_face(written)


def test_a_config_that_is_damaged_or_absent_is_one_clear_message(folder, tmp_path):
    written = folder()
    rewrite(written, hidden_size="many")
    with pytest.raises(DataError, match="transformers refuses it"):
        read_hugging_face(written)
    (written / "config.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_hugging_face(written)
    with pytest.raises(DataError, match=r"no config\.json"):
        read_hugging_face(tmp_path / "nowhere")


def test_weights_that_do_not_fit_the_config_are_refused(folder):
    written = folder()
    rewrite(written, num_hidden_layers=3)
    with pytest.raises(DataError, match=r"missing: model\.layers\.2"):
        read_hugging_face(written)
    rewrite(written, num_hidden_layers=1)
    with pytest.raises(ConfigError, match=r"does not have: model\.layers\.1"):
        read_hugging_face(written)
    rewrite(written, num_hidden_layers=2, vocab_size=331)
    with pytest.raises(DataError, match=r"shape \(330, 64\)"):
        read_hugging_face(written)


def test_biases_are_refused(folder):
    written = folder()
    name = "model.layers.0.self_attn.q_proj.bias"
    change_weights(written, lambda weights: weights.update({name: torch.zeros(64)}))
    with pytest.raises(ConfigError, match="has biases"):
        read_hugging_face(written)


def test_a_head_must_be_what_the_config_says(folder):
    untied, tied = folder(), folder("tied")
    change_weights(untied, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(DataError, match=r"(?s)lm_head\.weight.*tie_word_embeddings"):
        read_hugging_face(untied)
    embedding = "model.embed_tokens.weight"
    change_weights(tied, lambda w: w.update({"lm_head.weight": w[embedding].clone()}))
    assert "output_layer.weight" not in read_hugging_face(tied)[1]
    change_weights(tied, lambda w: w["lm_head.weight"].add_(1.0))
    with pytest.raises(ConfigError, match="differs"):
        read_hugging_face(tied)


def test_missing_and_damaged_files_are_named(folder, tmp_path):
    from transformers import AutoModelForCausalLM

    written, saved = folder(), tmp_path / "saved"
    AutoModelForCausalLM.from_pretrained(written).save_pretrained(saved, max_shard_size="200KB")
    shards = sorted(saved.glob("*.safetensors"))
    content = shards[1].read_bytes()
    shards[1].unlink()
    with pytest.raises(DataError, match=f"1 are missing: {shards[1].name}"):
        read_hugging_face(saved)
    shards[1].write_bytes(content[: math.ceil(len(content) / 2)])
    with pytest.raises(DataError, match=rf"(?s){shards[1].name}.*cannot be read"):
        read_hugging_face(saved)
    (written / "model.safetensors").rename(written / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"neither model\.safetensors nor"):
        read_hugging_face(written)


def test_weights_of_another_model_are_not_taken(folder):
    _, weights = read_hugging_face(folder())
    other = build(KINDS["LlamaForCausalLM"].model_copy(update={"ffn_hidden_size": 128}))
    with pytest.raises(DataError, match=r"linear_fc1.* the model needs"):
        load_whole_weights(other, weights)
    weights.pop("decoder.final_layernorm.weight")
    with pytest.raises(DataError, match=r"final_layernorm\.weight is missing"):
        load_whole_weights(build(KINDS["LlamaForCausalLM"]), weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("Olmo2ForCausalLM", {"tensor_parallel": 2}),
        ("OlmoeForCausalLM", {"tensor_parallel": 2}),
        ("OlmoeForCausalLM", {"expert_parallel": 2}),
    ],
)
def test_every_rank_takes_its_share_of_the_weights(kind, layout, folder, tmp_path):
    written = folder(kind)
    expected = two_rank_weights.losses(written, {})
    out = tmp_path / "losses.json"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(two_rank_weights.__file__)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *launcher, script, written, json.dumps(layout), out],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.tensor(json.loads(out.read_text()), dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-11)
