"""OLMo2's and OLMoE's norms, whole and split over two ranks (each run is its own torchrun)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from megatron.core.optimizer.clip_grads import param_is_not_tensor_parallel_duplicate

from megatron_synth.config import ConfigError, parse_config
from megatron_synth.models import ModelConfig, build_model
from megatron_synth.models.build import transformer_config
from megatron_synth.models.norms import ProjectionRMSNorm, normed_output
from megatron_synth.runs import read_metrics
from megatron_synth.runtime import ParallelConfig, initialize
from megatron_synth.training import TrainConfig

NORM_SCRIPT = Path(__file__).parent / "two_rank_norm.py"
TRAINING_SCRIPT = Path(__file__).parents[1] / "training" / "tiny_training.py"
SMALL = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "ffn_hidden_size": 96,
    "vocab_size": 250,
}
MODELS = {
    "olmo2": ModelConfig(
        **SMALL, num_query_groups=2, block="post_norm", qk_norm="projection", norm_eps=1e-6
    ),
    "olmoe": ModelConfig(**SMALL, qk_norm="projection", moe={"num_experts": 8, "top_k": 3}),
}


def start(script, arguments, ranks):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *(launcher if ranks > 1 else []), script, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def train(out, model, ranks, **layout):
    config = TrainConfig(
        sequence_length=32,
        micro_batch_size=2,
        global_batch_size=4,
        steps=6,
        save_every=100,
        eval_every=3,
        schedule={"peak": 3e-3, "warmup_steps": 2},
        precision="fp64",
        **layout,
    )
    start(TRAINING_SCRIPT, [out, MODELS[model].model_dump_json(), config.model_dump_json()], ranks)
    return [
        {"loss": row["loss"], "norm": row["grad_norm"], **row.get("validation", {})}
        for row in read_metrics(out / "metrics.jsonl")
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_norm_takes_all_heads_as_one_vector(dtype):
    initialize(threads=1)
    config = transformer_config(MODELS["olmo2"], ParallelConfig(), dtype)
    norm = ProjectionRMSNorm(config, 16, 4, eps=1e-6)
    with torch.no_grad():
        norm.weight.normal_()
    heads = (torch.randn(5, 3, 4, 16) * torch.tensor([1.0, 9.0, 0.1, 3.0])[:, None]).to(dtype)
    flat = heads.double().flatten(-2)
    expected = flat / (flat.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert norm(heads).dtype == dtype
    torch.testing.assert_close(
        norm(heads).double().flatten(-2), expected, atol=tolerance, rtol=tolerance
    )


def test_olmo2_normalises_what_attention_and_mlp_add_to_the_stream():
    initialize(threads=1)
    model = build_model(MODELS["olmo2"], sequence_length=16, seed=0, dtype=torch.float64)
    layer = model.decoder.layers[0]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
        for linear in (layer.self_attention.linear_proj, layer.mlp.linear_fc2):
            linear.layer_norm_weight.fill_(0.5)
        hidden = torch.randn(6, 2, 64, dtype=torch.float64)
        positions = model.rotary_pos_emb(6)
        attended = layer.self_attention(hidden, None, rotary_pos_emb=positions)[0]
        middle = hidden + attended
        result, _ = layer(hidden_states=hidden, attention_mask=None, rotary_pos_emb=positions)
    for added in (attended, result - middle):
        size = added.square().mean(-1).sqrt()
        assert torch.allclose(size, torch.full_like(size, 0.5), atol=1e-5)


def test_a_share_of_the_projection_norm_is_marked_as_split():
    """Without the mark the gradient norm would count one rank's share only."""
    initialize(threads=1)
    transformer = transformer_config(MODELS["olmo2"], ParallelConfig(), torch.float32)
    transformer.tensor_model_parallel_size = 2
    norm = ProjectionRMSNorm(transformer, 16, 4)
    assert norm.weight.shape == (32,)
    assert param_is_not_tensor_parallel_duplicate(norm.weight)
    assert not hasattr(norm.weight, "sequence_parallel")


def test_the_norm_after_a_layer_sums_its_gradient_over_the_parts_of_the_sequence():
    initialize(threads=1)
    for ranks in (1, 2):
        layout = ParallelConfig(tensor_parallel=ranks)
        config = transformer_config(MODELS["olmo2"], layout, torch.float32)
        linear = normed_output()(
            64,
            64,
            config=config,
            init_method=config.init_method,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=True,
            is_expert=False,
        )
        assert linear.layer_norm_weight.sequence_parallel == (ranks == 2)


@pytest.mark.parametrize(
    ("said", "kept", "kind"),
    [
        (True, True, "head"),
        ("head", True, "head"),
        (False, False, "none"),
        ("none", False, "none"),
        ("projection", "projection", "projection"),
    ],
)
def test_qk_norm_is_said_by_name_or_as_before(said, kept, kind):
    config = parse_config({**SMALL, "qk_norm": said}, ModelConfig, where="model")
    assert (config.qk_norm, config.qk_norm_kind) == (kept, kind)
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"qk_norm": "heads"}, "qk_norm"),
        ({"block": "sandwich"}, "block"),
        ({"block": "post_norm", "moe": {"num_experts": 4, "top_k": 2}}, "no MoE form"),
    ],
)
def test_what_is_no_block_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({**SMALL, **wrong}, ModelConfig, where="model")


@pytest.mark.slow
def test_the_split_norm_is_the_whole_one_and_needs_both_reductions(tmp_path):
    out = tmp_path / "measured.json"

    def differences(*left_out):
        start(NORM_SCRIPT, [out, *left_out], 2)
        return json.loads(out.read_text())

    assert max(differences().values()) < 1e-12
    assert differences("reduce_from_tensor_model_parallel_region")["output"] > 1e-2
    without_backward = differences("copy_to_tensor_model_parallel_region")
    assert without_backward["output"] < 1e-12
    assert without_backward["gradient"] > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_two_ranks_give_the_losses_of_one(model, tmp_path):
    expected = train(tmp_path / "one", model, 1)
    layouts = {
        "tensor": {"tensor_parallel": 2},
        "pipeline": {"pipeline_parallel": 2},
        "data": {},
    }
    if MODELS[model].moe:
        layouts["expert"] = {"expert_parallel": 2}
    for name, layout in layouts.items():
        for step, (ours, theirs) in enumerate(
            zip(train(tmp_path / name, model, 2, **layout), expected, strict=True)
        ):
            for key, value in theirs.items():
                assert ours[key] == pytest.approx(value, rel=1e-9), (name, step, key)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_of_two_ranks_holds_the_model_of_one(model, tmp_path):
    from megatron_synth.training import load_for_inference

    weights = {}
    for name, ranks, layout in (("one", 1, {}), ("two", 2, {"tensor_parallel": 2})):
        train(tmp_path / name, model, ranks, **layout)
        checkpoint = tmp_path / name / "checkpoints" / "step_00000006"
        loaded, config = load_for_inference(checkpoint, threads=1)
        assert config == MODELS[model]
        weights[name] = {
            key: value for key, value in loaded.state_dict().items() if value is not None
        }
    assert weights["one"].keys() == weights["two"].keys()
    for key, value in weights["one"].items():
        torch.testing.assert_close(weights["two"][key], value, atol=1e-6, rtol=1e-5, msg=key)
