"""Runs that start from a checkpoint that Megatron-Core's own classes wrote."""

import argparse

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_config import TransformerConfig
from tiny_training import TINY, Windows, settings

from megatron_synth.config import ConfigError, DataError
from megatron_synth.runs import Progress
from megatron_synth.runtime import initialize
from megatron_synth.training import load_for_inference, train
from megatron_synth.training.job import TrainJob, model_of

# So small a rate that the weights stay what they were, to float32.
STILL = {"steps": 1, "schedule": {"kind": "constant", "peak": 1e-12, "warmup_steps": 0}}


class Elsewhere:
    """Of somebody else's code: cannot be read where it is not installed."""


def stock_model(**changed):
    """Megatron-Core's GPT as its own users build it, no class of ours in it."""
    initialize(threads=1)
    sizes = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "ffn_hidden_size": 96}
    torch.manual_seed(5)
    return GPTModel(
        config=TransformerConfig(
            **{**sizes, **changed},
            normalization="RMSNorm",
            gated_linear_unit=True,
            activation_func=torch.nn.functional.silu,
            add_bias_linear=False,
            use_cpu_initialization=True,
            hidden_dropout=0.0,
            attention_dropout=0.0,
        ),
        transformer_layer_spec=get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=512,  # padded to a multiple of 512 there, to 256 here
        max_sequence_length=32,
        parallel_output=False,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        rotary_base=10_000,
    ).eval()


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """The folder as Megatron-LM's training leaves it, and its logits."""
    model = stock_model()
    out = tmp_path_factory.mktemp("stock")
    folder = out / "iter_0000010"
    folder.mkdir()
    content = {
        "args": argparse.Namespace(hidden_size=64, theirs=Elsewhere()),
        "checkpoint_version": 3.0,
        "iteration": 10,
        "model": model.sharded_state_dict(),
    }
    from megatron_synth.training.saving import _Shards

    shards = _Shards(copy=False)
    dist_checkpointing.save(content, str(folder), shards)
    torch.distributed.checkpoint.save(
        shards.state,
        storage_writer=torch.distributed.checkpoint.FileSystemWriter(folder),
        planner=_planner(),
    )
    (out / "latest_checkpointed_iteration.txt").write_text("10")
    return out, logits(model)


def _planner():
    from megatron.core.dist_checkpointing.strategies.torch import MCoreSavePlanner

    return MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)


def logits(model):
    tokens = torch.arange(24)[None]
    with torch.no_grad():
        found = model(input_ids=tokens, position_ids=tokens, attention_mask=None)
    return found[..., : TINY.vocab_size]


def start(out, init_from, model=TINY, **other):
    config = settings(**STILL)
    return train(
        config, model, Windows(40), out, Progress(), data_hash="d", init_from=init_from, **other
    )


@pytest.mark.parametrize("inside", ["", "iter_0000010"])
def test_a_run_starts_from_its_weights(inside, stock, tmp_path):
    folder, expected = stock
    result = start(tmp_path, folder / inside)
    model, _ = load_for_inference(result.checkpoint)
    assert torch.allclose(logits(model), expected, atol=1e-5)
    assert expected.std() > 0.05


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_layers": 3}, r"shape \(2, .*this model's is \(3, "),
        ({"hidden_size": 128}, "has shape"),
        ({"qk_norm": True}, "q_layernorm.weight is missing"),
        ({"tie_embeddings": True}, r"output_layer\.weight has no place"),
    ],
)
def test_weights_of_another_model_are_refused(changed, message, stock, tmp_path):
    with pytest.raises(ConfigError, match=message):
        start(tmp_path / "out", stock[0], TINY.model_copy(update=changed))
    assert not (tmp_path / "out").exists()


def test_its_optimizer_cannot_be_kept(stock, tmp_path):
    with pytest.raises(ConfigError, match="weights alone are taken"):
        start(tmp_path, stock[0], init_optimizer="keep")


def test_what_it_is_has_to_be_said(stock):
    job = TrainJob(plans="none.json", init_from=stock[0])

    class NoCorpora:
        plans = ()

    with pytest.raises(ConfigError, match="Give `model`"):
        model_of(job, NoCorpora(), "train.yaml")


def test_a_checkpoint_of_the_older_form_is_told_apart(tmp_path):
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("20")
    (tmp_path / "iter_0000020" / "mp_rank_00").mkdir(parents=True)
    with pytest.raises(DataError, match=r"not a distributed checkpoint(.|\n)*ckpt-convert-format"):
        start(tmp_path / "out", tmp_path)


def test_a_missing_shard_is_one_clear_message(stock, tmp_path):
    import shutil

    folder = tmp_path / "iter_0000010"
    shutil.copytree(stock[0] / folder.name, folder)
    next(folder.glob("*.distcp")).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        start(tmp_path / "out", folder)
