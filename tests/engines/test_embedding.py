import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from megatron_synth.config import ConfigError, DataError
from megatron_synth.engines.embedding import EmbedConfig, embed_documents, embed_tokens
from megatron_synth.engines.encoder import batches
from megatron_synth.runs import Progress

SIZES = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(folder)
    return folder


def make_documents(count=37, seed=0, longest=50):
    generator = np.random.default_rng(seed)
    tokens = [
        generator.integers(1, 200, generator.integers(1, longest)).tolist() for _ in range(count)
    ]
    return [f"doc-{i}" for i in range(count)], tokens


def embed(folder, out, documents=None, prefix=None, **settings):
    ids, tokens = documents or make_documents()
    config = EmbedConfig(device="cpu", **settings)
    counts = embed_tokens(config, ids, tokens, folder, out, Progress(), prefix=prefix)
    return np.load(out / "embeddings.npy"), counts


def reference(folder, tokens, layer, prefix=None):
    """One document at a time, all layers, the hidden state picked from the full list."""
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    rows = []
    for document in tokens:
        ids = ([] if prefix is None else [prefix]) + document
        with torch.no_grad():
            hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer]
        rows.append(hidden[0, 0 if prefix is None else 1 :].mean(0).numpy())
    return np.stack(rows)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("prefix", [None, 7])
@pytest.mark.parametrize("layer", [None, 1, 3])
def test_vectors_are_means_over_real_tokens_of_the_layer(model_folder, tmp_path, layer, prefix):
    vectors, counts = embed(
        model_folder, tmp_path, layer=layer, prefix=prefix, center=False, batch_tokens=200
    )
    assert vectors.dtype == np.float16
    assert counts["layer"] == (layer or 2)
    wanted = unit(reference(model_folder, make_documents()[1], layer or 2, prefix))
    assert np.abs(vectors - wanted).max() < 1e-3


def test_centring_removes_the_common_direction_before_unit_norm(model_folder, tmp_path):
    vectors, counts = embed(model_folder, tmp_path)
    raw = reference(model_folder, make_documents()[1], 2)
    assert np.abs(vectors - unit(raw - raw.mean(0))).max() < 2e-3
    assert np.allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=2e-3)
    assert 0 < counts["common_share"] < 1


def test_a_strong_common_direction_hides_what_centring_shows(model_folder, tmp_path):
    """Two groups of documents, and a shift that all share, as trained models have."""
    documents = [f"d{i}" for i in range(20)], [[3] * 9] * 10 + [[4] * 9] * 10
    torch.manual_seed(0)
    model = LlamaForCausalLM.from_pretrained(model_folder)
    model.model.embed_tokens.weight.data += 1.0
    model.save_pretrained(tmp_path / "shifted")
    plain, _ = embed(tmp_path / "shifted", tmp_path / "a", documents, center=False)
    centred, counts = embed(tmp_path / "shifted", tmp_path / "b", documents, center=True)
    assert float(plain[0].astype(float) @ plain[-1]) > 0.9
    assert float(centred[0].astype(float) @ centred[-1]) < -0.9
    assert counts["common_share"] > 0.9


def test_batch_and_shard_sizes_do_not_change_the_result(model_folder, tmp_path):
    one, _ = embed(model_folder, tmp_path / "a", batch_tokens=64, shard_documents=5)
    two, _ = embed(model_folder, tmp_path / "b", batch_tokens=10_000, shard_documents=1000)
    assert np.abs(one.astype(float) - two).max() < 2e-3


def test_ids_stand_beside_the_vectors_in_order(model_folder, tmp_path):
    embed(model_folder, tmp_path)
    assert pq.read_table(tmp_path / "ids.parquet")["id"].to_pylist() == make_documents()[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["embeddings.npy", "ids.parquet"]


class KilledError(BaseException):
    """Stands for a kill: nothing catches it."""


class KillAfter(Progress):
    def __init__(self, documents):
        super().__init__()
        self.limit = documents

    def update(self, done, note=""):
        super().update(done, note)
        if done >= self.limit:
            raise KilledError


def test_a_killed_run_goes_on_from_its_shards(model_folder, tmp_path, monkeypatch):
    ids, tokens = make_documents()
    config = EmbedConfig(device="cpu", shard_documents=10)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    embed_tokens(config, ids, tokens, model_folder, whole, Progress())
    with pytest.raises(KilledError):
        embed_tokens(config, ids, tokens, model_folder, killed, KillAfter(25))
    assert not (killed / "embeddings.npy").exists()
    assert len(list((killed / ".shards").glob("*.npy"))) == 2
    seen = []
    monkeypatch.setattr(
        "megatron_synth.engines.encoder.batches",
        lambda lengths, size: seen.append(len(lengths)) or batches(lengths, size),
    )
    embed_tokens(config, ids, tokens, model_folder, killed, Progress())
    assert sum(seen) == 17  # 37 documents, 20 of them finished before the kill
    for name in ("embeddings.npy", "ids.parquet"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()


def test_shards_of_other_documents_are_not_taken_over(model_folder, tmp_path):
    ids, tokens = make_documents()
    config = EmbedConfig(device="cpu", shard_documents=10)
    with pytest.raises(KilledError):
        embed_tokens(config, ids, tokens, model_folder, tmp_path, KillAfter(25))
    other = make_documents(seed=9)
    embed_tokens(config, *other, model_folder, tmp_path, Progress())
    wanted, _ = embed(model_folder, tmp_path / "fresh", other, shard_documents=10)
    assert np.array_equal(np.load(tmp_path / "embeddings.npy"), wanted)


def test_long_documents_are_cut_and_counted(model_folder, tmp_path):
    documents = ["a", "b"], [list(range(1, 100)), [5, 6, 7]]
    vectors, counts = embed(model_folder, tmp_path, documents, center=False, prefix=0)
    assert counts["truncated"] == 1
    wanted = unit(reference(model_folder, [documents[1][0][:63]], 2, 0))
    assert np.abs(vectors[0] - wanted[0]).max() < 1e-3


def test_a_document_without_tokens_gets_zeros_and_is_counted(model_folder, tmp_path):
    documents = ["a", "b", "c"], [[1, 2, 3], [], [4, 5]]
    vectors, counts = embed(model_folder, tmp_path, documents)
    assert counts["without_tokens"] == 1
    assert not vectors[1].any()
    raw = reference(model_folder, [[1, 2, 3], [4, 5]], 2)
    assert np.abs(vectors[[0, 2]] - unit(raw - raw.mean(0))).max() < 2e-3


def test_another_architecture_gives_the_same_as_its_full_list_of_states(tmp_path):
    torch.manual_seed(1)
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)).eval()
    model.save_pretrained(tmp_path / "qwen")
    documents = ["a", "b"], [[3, 1, 4, 1, 5], [9, 2, 6]]
    vectors, _ = embed(tmp_path / "qwen", tmp_path / "out", documents, center=False, layer=3)
    with torch.no_grad():
        states = model(torch.tensor([documents[1][0]]), output_hidden_states=True).hidden_states
    wanted = states[3][0].mean(0).numpy()
    assert np.abs(vectors[0] - wanted / np.linalg.norm(wanted)).max() < 1e-3


def test_mistakes_are_named(model_folder, tmp_path):
    with pytest.raises(ConfigError, match="layer 9 asked for, but the model has 4"):
        embed(model_folder, tmp_path, layer=9)
    with pytest.raises(DataError, match=r"no config\.json"):
        embed(tmp_path, tmp_path)
    with pytest.raises(DataError, match="too few"):
        embed(model_folder, tmp_path, (["a"], [[1]]))
    with pytest.raises(DataError, match="outside the model's vocabulary of 200"):
        embed(model_folder, tmp_path, (["a", "b"], [[1], [200]]))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(DataError, match="cannot load the model"):
        embed(tmp_path / "broken", tmp_path)


def test_batches_hold_like_lengths_within_the_limit():
    lengths = [5, 1, 9, 9, 2, 40, 0]
    found = list(batches(lengths, 20))
    assert sorted(i for b in found for i in b) == [0, 1, 2, 3, 4, 5]
    assert found[0] == [5]  # longer than the limit: alone
    assert all(len(b) * max(lengths[i] for i in b) <= 20 for b in found[1:])


def test_a_documents_file_is_embedded_with_the_models_own_tokenizer(tmp_path):
    """The separator goes before each document, and stays out of the mean."""
    from megatron_synth.corpus import Document, write_documents
    from megatron_synth.tokens import train_tokenizer

    texts = [f"the {word} of the {word} is a {word}" for word in ("cat", "dog", "tree", "house")]
    folder = tmp_path / "model"
    tokenizer = train_tokenizer(texts * 20, 300, folder)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**SIZES, "vocab_size": 300})).save_pretrained(folder)
    documents = tmp_path / "documents.jsonl"
    write_documents(documents, [Document(id=f"d{i}", text=t) for i, t in enumerate(texts)])
    config = EmbedConfig(device="cpu", center=False)
    counts = embed_documents(config, documents, folder, tmp_path / "out", Progress())
    assert counts["documents"] == 4
    wanted = unit(reference(folder, tokenizer.encode_batch(texts), 2, tokenizer.eos_id))
    assert np.abs(np.load(tmp_path / "out" / "embeddings.npy") - wanted).max() < 1e-3
    assert pq.read_table(tmp_path / "out" / "ids.parquet")["id"].to_pylist() == [
        "d0",
        "d1",
        "d2",
        "d3",
    ]
