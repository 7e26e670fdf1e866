"""Training with attention inside each document only."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_training import SETTINGS, TINY, ApartWindows, settings, weights_hash

from megatron_synth.models import ModelConfig, build_model
from megatron_synth.runs import Progress, read_metrics
from megatron_synth.runtime import initialize
from megatron_synth.training import TrainConfig, train
from megatron_synth.training.batches import BatchPlan, read_batch
from megatron_synth.training.forward import run_batch

SCRIPT = Path(__file__).parent / "tiny_training.py"
SMALL = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "ffn_hidden_size": 96}
KINDS = {
    "dense": TINY,
    "grouped": ModelConfig(
        **{**SMALL, "num_attention_heads": 4}, num_query_groups=2, vocab_size=256
    ),
    "qk_norm": TINY.model_copy(update={"qk_norm": True}),
    "moe": ModelConfig(**SMALL, vocab_size=256, qk_norm=True, moe={"num_experts": 4, "top_k": 2}),
}


def documents(sample):
    """Each document of a window: tokens, labels and loss mask."""
    borders = sample["cu_seqlens"].tolist()
    for begin, end in itertools.pairwise(borders):
        if begin < end:
            yield tuple(sample[name][begin:end] for name in ("tokens", "labels", "loss_mask"))


def loss_alone(model, tokens, labels, mask):
    positions = torch.arange(len(tokens))[None]
    losses = model(
        input_ids=tokens[None], position_ids=positions, attention_mask=None, labels=labels[None]
    )
    return (losses[0] * mask).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_each_document_has_the_loss_that_it_has_alone(kind):
    initialize(threads=1)
    model = build_model(KINDS[kind], sequence_length=32, seed=1)
    model.eval()
    windows = ApartWindows(6)
    batches = read_batch(windows, BatchPlan(6, 3, 1, 0), 0, 32)
    with torch.no_grad():
        found = run_batch(model, batches, global_batch_size=6, sequence_length=32, train=False)
        expected = [
            sum(float(loss_alone(model, *document)) for document in documents(windows[i]))
            for i in range(6)
        ]
    assert found.nll.tolist() == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("kind", ["dense", "grouped", "qk_norm"])
def test_gradients_are_those_of_the_documents_alone(kind):
    initialize(threads=1)
    model = build_model(KINDS[kind], sequence_length=32, seed=1)
    windows = ApartWindows(2)
    batches = read_batch(windows, BatchPlan(2, 2, 1, 0), 0, 32)
    gradients = []
    for losses in (
        lambda: sum(loss_alone(model, *d) for i in range(2) for d in documents(windows[i])),
        lambda: _packed_loss(model, batches[0]),
    ):
        model.zero_grad()
        losses().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    alone, packed = gradients
    for name, gradient in alone.items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-4, atol=1e-6)


def _packed_loss(model, batch):
    from megatron_synth.training.forward import _forward

    losses, loss_of = _forward(iter([batch]), model)
    return loss_of(losses)[0]


def run(out, ranks, **changed):
    config = TrainConfig(**{**SETTINGS, "steps": 4, "save_every": 100, **changed})
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", *(launcher if ranks > 1 else []), SCRIPT),
            *(out, TINY.model_dump_json(), config.model_dump_json()),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "APART": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [(r["loss"], r["grad_norm"]) for r in read_metrics(out / "metrics.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tensor_parallel", "pipeline_parallel"])
def test_two_ranks_give_the_losses_of_one(tmp_path, layout):
    one = run(tmp_path / "one", 1)
    two = run(tmp_path / "two", 2, **{layout: 2})
    assert len(one) == 4
    for mine, expected in zip(two, one, strict=True):
        assert mine == pytest.approx(expected, rel=1e-4)


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    class Crashes(ApartWindows):
        def __getitem__(self, index):
            if index >= 20:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    def go(name, windows):
        out = tmp_path / name
        return train(settings(), TINY, windows, out, Progress(), data_hash="apart")

    whole = go("whole", ApartWindows(400))
    with pytest.raises(KeyboardInterrupt):
        go("killed", Crashes(400))
    assert weights_hash(go("killed", ApartWindows(400)).checkpoint) == weights_hash(
        whole.checkpoint
    )
