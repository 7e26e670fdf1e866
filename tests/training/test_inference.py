import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import TINY, Windows
from tiny_training import settings as tiny_settings

from megatron_synth.config import ConfigError, DataError
from megatron_synth.runs import Progress
from megatron_synth.tokens import train_tokenizer
from megatron_synth.training import document_losses, export_hugging_face, load_for_inference, train
from megatron_synth.training.inference import _batches

EOS = 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    model = TINY.model_copy(update={"vocab_size": 330})
    data = Windows(400, vocabulary=330)
    return train(tiny_settings(), model, data, out, Progress(), data_hash="d").checkpoint


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_for_inference(checkpoint, threads=1)[0]


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    texts = ["some words to learn from", "and a few other words"] * 10
    train_tokenizer(texts, 300, folder / "tokenizer")
    export_hugging_face(checkpoint, folder / "tokenizer", folder / "model", max_positions=64)
    return folder / "model"


def documents(number, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(1, 330, random.integers(1, 31)) for _ in range(number)]


def test_losses_are_those_of_transformers_for_each_document_alone(model, exported):
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    some = documents(6)
    nll, tokens = document_losses(model, some, eos_id=EOS)
    for number, document in enumerate(some):
        ids = torch.from_numpy(np.concatenate([[EOS], document, [EOS]]))[None]
        with torch.no_grad():
            log_p = reference(ids[:, :-1]).logits.double().log_softmax(-1)
        expected = -log_p.gather(-1, ids[:, 1:, None]).sum()
        assert nll[number] == pytest.approx(float(expected), rel=1e-5)
        assert tokens[number] == len(document) + 1
    assert (nll.dtype, tokens.dtype) == (np.float64, np.int64)


def test_neighbours_in_a_batch_change_nothing(model):
    some = documents(12)
    together, _ = document_losses(model, some, eos_id=EOS)
    alone, _ = document_losses(model, some, eos_id=EOS, batch_tokens=1)
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_a_final_end_of_text_is_scored_once(model):
    some = documents(3)
    with_eos = [np.append(document, EOS) for document in some]
    for one, other in zip(
        document_losses(model, some, eos_id=EOS),
        document_losses(model, with_eos, eos_id=EOS),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        (np.arange(1, 33), ConfigError, "33 tokens with EOS, the limit is 32"),
        (np.array([], dtype=int), DataError, "empty"),
        (np.array([1, 330]), DataError, "knows 0 to 329"),
        (np.array([-1]), DataError, "from -1"),
    ],
)
def test_a_document_that_cannot_be_scored_is_refused(model, document, error, message):
    with pytest.raises(error, match=message) as caught:
        document_losses(model, [np.array([1]), document], eos_id=EOS)
    assert caught.value.where == "document 1"


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_batches_hold_every_document_once_within_the_budget(lengths, budget):
    batches = _batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert padded <= budget or len(batch) == 1


def test_a_folder_that_is_no_checkpoint_names_the_one_inside(checkpoint, tmp_path):
    with pytest.raises(DataError, match="not a checkpoint") as caught:
        load_for_inference(checkpoint.parent.parent)
    assert str(checkpoint) in str(caught.value)
    with pytest.raises(DataError, match="not a checkpoint"):
        load_for_inference(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "cut short"])
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "common.pt", "metadata.json"])
def test_a_damaged_checkpoint_is_one_clear_message(checkpoint, tmp_path, name, damage):
    damaged = tmp_path / "step_00000008"
    shutil.copytree(checkpoint, damaged)
    if damage == "missing":
        (damaged / name).unlink()
    else:
        content = (damaged / name).read_bytes()
        (damaged / name).write_bytes(content[: len(content) // 5])  # the weights are a third
    with pytest.raises(DataError, match="cannot be read") as caught:
        load_for_inference(damaged)
    assert caught.value.where == str(damaged)
