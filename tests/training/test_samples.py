import pytest
import torch
from tiny_training import TINY, Windows, settings, weights_hash

from megatron_synth.config import ConfigError
from megatron_synth.models import build_model
from megatron_synth.runs import Progress, read_metrics
from megatron_synth.runtime import initialize
from megatron_synth.training import load_for_inference, train
from megatron_synth.training.samples import Samples, continue_greedily


def spelled(ids):
    return " ".join(map(str, ids))


def run(out, samples=None, **other):
    config = settings(**other)
    return train(config, TINY, Windows(400), out, Progress(), data_hash="d", samples=samples)


def test_samples_are_logged_and_leave_the_training_as_it_is(tmp_path):
    samples = Samples([[5, 6], [7]], eos_id=0, decode=spelled, every=3, tokens=4)
    sampled, plain = run(tmp_path / "sampled", samples), run(tmp_path / "plain")
    assert weights_hash(sampled.checkpoint) == weights_hash(plain.checkpoint)
    records = read_metrics(tmp_path / "sampled" / "samples.jsonl")
    assert [(r["step"], r["prompt"]) for r in records] == [
        (step, prompt) for step in (3, 6, 8) for prompt in ("5 6", "7")
    ]
    assert all(len(r["text"].split()) <= 4 for r in records)
    assert not (tmp_path / "plain" / "samples.jsonl").exists()


def test_each_token_is_the_likeliest_after_those_before(tmp_path):
    model, _ = load_for_inference(run(tmp_path).checkpoint)
    text = [0, 5, 6]
    added = continue_greedily(model, text, 6, eos_id=0, sequence_length=32)
    assert added
    for token in added:
        ids = torch.tensor([text])
        positions = torch.arange(len(text))[None]
        logits = model(input_ids=ids, position_ids=positions, attention_mask=None)
        assert int(logits[0, -1, :256].argmax()) == token
        text.append(token)


def test_a_text_ends_at_the_windows_length_and_never_with_padding():
    initialize(threads=1)
    odd = TINY.model_copy(update={"vocab_size": 200})  # 56 rows of padding
    model = build_model(odd, sequence_length=32, seed=0)
    added = continue_greedily(model, [1] * 28, 99, eos_id=-1, sequence_length=32)
    assert len(added) == 4
    assert max(added) < 200
    with pytest.raises(ConfigError, match="32 tokens with EOS, windows have 32"):
        continue_greedily(model, [1] * 32, 1, eos_id=0, sequence_length=32)
