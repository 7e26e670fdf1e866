import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from megatron_synth.config import ConfigError, DataError, RunError
from megatron_synth.models import PRESETS, ModelConfig, build_model, write_hugging_face
from megatron_synth.runtime import initialize

SMALL = {
    "num_layers": 2,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "ffn_hidden_size": 96,
    "vocab_size": 330,  # padded to 384
}
EXPERTS = {"num_experts": 4, "top_k": 2}
KINDS = {
    "llama": ModelConfig(**SMALL),
    "tied": ModelConfig(**SMALL, tie_embeddings=True),
    "grouped": ModelConfig(**SMALL, num_query_groups=2, rope_base=5e5),
    "qwen3": ModelConfig(**SMALL, num_query_groups=2, qk_norm=True),
    "moe": ModelConfig(**SMALL, qk_norm=True, moe=EXPERTS),
    "olmo2": ModelConfig(**SMALL, block="post_norm", qk_norm="projection", norm_eps=1e-6),
    "olmoe": ModelConfig(**SMALL, qk_norm="projection", moe=EXPERTS),
}


def build(config, seed=3):
    initialize(threads=1)
    model = build_model(config, sequence_length=64, seed=seed, gather_logits=True).eval()
    with torch.no_grad():  # norms of 1 and tiny weights would hide a wrong place
        for parameter in model.parameters():
            generator = torch.Generator().manual_seed(parameter.numel())
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def logits_of(model, tokens):
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    with torch.no_grad():
        return model(input_ids=tokens, position_ids=positions, attention_mask=None)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_same_logits(kind, tokenizer_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    config = KINDS[kind]
    model = build(config)
    write_hugging_face(model.state_dict(), config, tokenizer_folder, tmp_path, max_positions=80)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.randint(0, 330, (2, 48))
    with torch.no_grad():
        expected = theirs(tokens).logits
    ours = logits_of(model, tokens)
    assert expected.shape[-1] == 330
    assert theirs.config.max_position_embeddings == 80
    assert torch.allclose(ours[..., :330], expected, atol=2e-5, rtol=1e-4)
    assert expected.std() > 0.1


def test_large_weights_are_written_in_shards(tokenizer_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    config = KINDS["olmoe"]
    weights = build(config).state_dict()
    for limit, shards in ((10**9, 1), (400_000, 6), (10**9, 1)):
        write_hugging_face(
            weights, config, tokenizer_folder, tmp_path, max_positions=64, max_shard_bytes=limit
        )
        files = list(tmp_path.glob("*.safetensors"))
        assert len(files) == shards
        assert all(file.stat().st_size < limit + 20_000 for file in files)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        head = weights["output_layer.weight"][:330]
        assert torch.equal(theirs.get_output_embeddings().weight, head)


def test_the_folder_holds_a_tokenizer_and_its_end_of_text(tokenizer_folder, tmp_path):
    from transformers import AutoTokenizer, GenerationConfig

    config = KINDS["llama"]
    model = build(config)
    write_hugging_face(model.state_dict(), config, tokenizer_folder, tmp_path, max_positions=64)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == tokenizer.eos_token_id == 0


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        write_hugging_face({}, KINDS["llama"], tmp_path, tmp_path / "out", max_positions=64)


def test_a_damaged_tokenizer_is_one_clear_message(tokenizer_folder, tmp_path):
    damaged = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_folder, damaged)
    (damaged / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="damaged tokenizer"):
        write_hugging_face({}, KINDS["llama"], damaged, tmp_path / "out", max_positions=64)


def test_a_folder_whose_weights_failed_to_be_written_is_not_whole(
    tokenizer_folder, tmp_path, monkeypatch
):
    from safetensors import SafetensorError

    def fails(_, path, **__):
        path.write_bytes(b"half")
        raise SafetensorError("no space left on device")

    config = KINDS["llama"]
    weights = build(config).state_dict()
    write_hugging_face(weights, config, tokenizer_folder, tmp_path, max_positions=64)
    monkeypatch.setattr("safetensors.torch.save_file", fails)
    with pytest.raises(RunError, match="could not be written: no space"):
        write_hugging_face(weights, config, tokenizer_folder, tmp_path, max_positions=64)
    assert not (tmp_path / "config.json").exists()
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_tokenizer_larger_than_the_model_is_refused(tokenizer_folder, tmp_path):
    config = KINDS["llama"].model_copy(update={"vocab_size": 270})
    with pytest.raises(ConfigError, match="only 270"):
        write_hugging_face({}, config, tokenizer_folder, tmp_path, max_positions=64)


def test_an_moe_that_hugging_face_cannot_say_is_refused(tokenizer_folder, tmp_path):
    config = ModelConfig(**SMALL, moe=EXPERTS)
    with pytest.raises(ConfigError, match="qk_norm"):
        write_hugging_face({}, config, tokenizer_folder, tmp_path, max_positions=64)


def test_weights_of_another_model_are_refused(tokenizer_folder, tmp_path):
    weights = build(KINDS["llama"]).state_dict()
    with pytest.raises(DataError, match=r"layers\.2"):
        deeper = KINDS["llama"].model_copy(update={"num_layers": 3})
        write_hugging_face(weights, deeper, tokenizer_folder, tmp_path, max_positions=64)
    with pytest.raises(DataError, match="no place"):
        shallower = KINDS["llama"].model_copy(update={"num_layers": 1})
        write_hugging_face(weights, shallower, tokenizer_folder, tmp_path, max_positions=64)


SCORE_WITH_VLLM = """
import gc, sys, numpy as np
from pathlib import Path
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    prompts = [{"prompt_token_ids": row} for row in np.load(sys.argv[2]).tolist()]
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        llm = LLM(model=str(folder), dtype="float32", enforce_eager=True, max_logprobs=-1,
                  logprobs_mode="raw_logits", max_model_len=64, max_num_seqs=2,
                  disable_log_stats=True)
        answers = llm.generate(prompts, SamplingParams(max_tokens=1, temperature=0.0, logprobs=-1))
        logits = [[a.outputs[0].logprobs[0][i].logprob for i in range(330)] for a in answers]
        np.save(folder / "logits.npy", np.array(logits))
        del llm
        gc.collect()
"""


def shrunk(preset):
    """A preset with all its settings but small sizes, the ratio of heads to groups kept."""
    config = ModelConfig(preset=preset)
    small = {
        **SMALL,
        "num_query_groups": max(1, 4 * config.query_groups // config.num_attention_heads),
    }
    if config.moe:
        small["moe"] = config.moe.model_copy(update=EXPERTS)
    return ModelConfig(preset=preset, **small)


@pytest.mark.slow
def test_vllm_gives_the_same_logits_for_every_preset_shrunk(tokenizer_folder, tmp_path):
    pytest.importorskip("vllm")
    # Presets that differ in their sizes alone are one model when shrunk; vLLM starts for each.
    models = {json.dumps(shrunk(preset).shape): preset for preset in PRESETS}
    tokens, expected = torch.randint(0, 330, (2, 20)), {}
    np.save(tmp_path / "tokens.npy", tokens.numpy())
    for preset in models.values():
        config = shrunk(preset)
        model = build(config)
        folder = tmp_path / "models" / preset
        write_hugging_face(model.state_dict(), config, tokenizer_folder, folder, max_positions=64)
        expected[preset] = logits_of(model, tokens)[:, -1, :330].numpy()
    kinds = {shrunk(preset).block + shrunk(preset).qk_norm_kind for preset in expected}
    assert len(kinds) >= 4 and sum(shrunk(preset).moe is not None for preset in expected) == 2
    script = tmp_path / "score.py"
    script.write_text(SCORE_WITH_VLLM)
    done = subprocess.run(
        [sys.executable, script, tmp_path / "models", tmp_path / "tokens.npy"],
        env={
            **os.environ,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for preset, ours in expected.items():
        theirs = np.load(tmp_path / "models" / preset / "logits.npy")
        np.testing.assert_allclose(theirs, ours, atol=5e-5, rtol=1e-4, err_msg=preset)
