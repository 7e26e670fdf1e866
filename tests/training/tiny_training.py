"""A small training run: imported by tests, and a script for runs that are killed or have ranks.

As a script: tiny_training.py OUT MODEL_JSON TRAIN_JSON [INIT_FROM]; with APART=1 in the
environment the windows keep their documents apart.
"""

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import torch

from megatron_synth.blending.windows import keep_apart
from megatron_synth.models import ModelConfig
from megatron_synth.runs import Progress
from megatron_synth.training import TrainConfig, load_for_inference, train

TINY = ModelConfig(
    num_layers=2,
    hidden_size=64,
    num_attention_heads=2,
    ffn_hidden_size=96,
    vocab_size=256,
)
SETTINGS = {
    "sequence_length": 32,
    "micro_batch_size": 2,
    "global_batch_size": 4,
    "steps": 8,
    "save_every": 3,
    "eval_every": 4,
    "schedule": {"peak": 3e-3, "warmup_steps": 2},
}


class Windows:
    """Windows that have something to learn (small steps), with some tokens masked."""

    def __init__(self, number, length=32, vocabulary=256):
        self.number, self.length, self.vocabulary = number, length, vocabulary

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        random = np.random.default_rng(index)
        ids = np.cumsum(random.integers(0, 4, self.length + 1)) % self.vocabulary
        return {
            "tokens": torch.from_numpy(ids[:-1]),
            "labels": torch.from_numpy(ids[1:]),
            "loss_mask": torch.from_numpy((random.random(self.length) < 0.8).astype("float32")),
            "position_ids": torch.arange(self.length),
            "dataset_id": index % 2,
        }


def settings(**changed):
    return TrainConfig(**{**SETTINGS, **changed})


def weights_hash(checkpoint):
    model, _ = load_for_inference(checkpoint)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor is not None:
            digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


class ApartWindows(Windows):
    """The same windows, each of several documents that do not see each other."""

    def __getitem__(self, index):
        begun = [0, 3 + index % 5, 9 + index % 7, self.length - 1 - index % 3]
        return {**super().__getitem__(index), **keep_apart(begun, self.length)}


if __name__ == "__main__":
    out, model, config = sys.argv[1:4]
    config = TrainConfig.model_validate_json(config)
    model = ModelConfig.model_validate_json(model)
    kind = ApartWindows if os.environ.get("APART") else Windows
    windows = kind(4000, config.sequence_length, model.vocab_size)
    validation = {"held out": kind(5, config.sequence_length, model.vocab_size)}
    started = Path(sys.argv[4]) if len(sys.argv) > 4 else None
    train(
        config,
        model,
        windows,
        Path(out),
        Progress(),
        data_hash="tiny",
        validation=validation,
        init_from=started,
    )
