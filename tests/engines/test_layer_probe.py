"""The probe that chooses a layer of the pretrained model."""

import json

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_synth.config import DataError
from megatron_synth.engines.embedding import EmbedConfig, embed_tokens
from megatron_synth.engines.encoder import TorchEncoder, activations_frame
from megatron_synth.engines.layer_probe import probe_layers, retrieval
from megatron_synth.runs import Progress

LAYERS = 3


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    sizes = {"num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(
        vocab_size=200, hidden_size=32, intermediate_size=64, max_position_embeddings=64, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def documents(count=20, length=60):
    """Each of a few tokens of its own, so that its halves are alike."""
    generator = np.random.default_rng(1)
    return [generator.choice(generator.integers(1, 200, 6), length).tolist() for _ in range(count)]


def encoder_of(folder):
    return TorchEncoder(
        folder, activations_frame(0), max_tokens=None, batch_tokens=300, device="cpu"
    )


def test_ranks_by_hand():
    first = np.array([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]], np.float32)
    second = np.array([[1.0, 0.1], [0.6, 0.8], [0.0, 1.0]], np.float32)
    # Rows find their partner at ranks 1, 2, 3; columns at 1, 2, 2.
    found = retrieval(first, second, center=False)
    assert found == {"top1": round(2 / 6, 4), "mrr": round((2 + 3 / 2 + 1 / 3) / 6, 4)}


def test_a_layer_that_tells_nothing_apart_wins_nothing():
    same = np.ones((5, 4), np.float32)
    assert retrieval(same, same, center=False) == {"top1": 0.0, "mrr": 0.2}
    assert retrieval(same, same, center=True)["top1"] == 0.0


def test_every_layer_is_measured_on_the_states_that_embedding_takes(folder):
    pieces = documents(6)
    layers = encoder_of(folder).encode_layers(pieces)
    assert layers.shape == (LAYERS, 6, 32)
    for layer in range(1, LAYERS + 1):
        encoder = encoder_of(folder)
        encoder.cut(layer)
        assert np.abs(encoder.encode(pieces, lambda n: None) - layers[layer - 1]).max() < 1e-4


def test_the_chosen_layer_is_the_one_with_the_best_figures(folder):
    found = probe_layers(encoder_of(folder), documents(), center=True)
    assert [row["layer"] for row in found["layers"]] == [1, 2, 3]
    best = max(row["mrr"] for row in found["layers"])
    assert found["chosen"] == min(r["layer"] for r in found["layers"] if r["mrr"] == best)
    assert found["documents"] == 20
    # Halves of one document share their tokens, those of others hardly any.
    assert found["layers"][0]["top1"] > 0.8


def test_too_few_long_documents_are_refused(folder):
    with pytest.raises(DataError, match="7 documents of 32 tokens are too few"):
        probe_layers(encoder_of(folder), [*documents(7), *documents(9, 31)], center=True)


class StopError(BaseException):
    """Stands for a kill."""


class StopAt(Progress):
    def __init__(self, phase):
        super().__init__()
        self.at = phase

    def phase(self, name, total=None, unit="", done=0):
        if name == self.at:
            raise StopError
        super().phase(name, total, unit, done)


def test_embedding_takes_the_layer_that_the_probe_chose_and_a_kill_keeps_its_choice(
    folder, tmp_path
):
    tokens = documents(30)
    ids = [f"d{i}" for i in range(30)]
    config = EmbedConfig(layer="probe", probe_documents=12, device="cpu")
    counts = embed_tokens(config, ids, tokens, folder, tmp_path / "a", Progress(), prefix=0)
    assert counts["layer"] == counts["probe"]["chosen"]
    assert counts["probe"]["documents"] == 12
    fixed = EmbedConfig(layer=counts["layer"], device="cpu")
    embed_tokens(fixed, ids, tokens, folder, tmp_path / "b", Progress(), prefix=0)
    a, b = (np.load(tmp_path / name / "embeddings.npy") for name in "ab")
    assert np.array_equal(a, b)

    with pytest.raises(StopError):
        embed_tokens(config, ids, tokens, folder, tmp_path / "c", StopAt("embedding"), prefix=0)
    (kept,) = (tmp_path / "c" / ".shards").glob("probe-*.json")
    other = {**json.loads(kept.read_text()), "chosen": counts["layer"] % LAYERS + 1}
    kept.write_text(json.dumps(other))  # to see that it is read
    again = embed_tokens(config, ids, tokens, folder, tmp_path / "c", Progress(), prefix=0)
    assert again["layer"] == other["chosen"]
