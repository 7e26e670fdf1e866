"""What several files about packing share."""

import random

import pytest

from megatron_synth.tokens import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """300 tokens, two of them special."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(["alpha", "beta", "gamma", "δ"], k=50)) for _ in range(50)]
    return train_tokenizer(texts, 300, tmp_path_factory.mktemp("tokenizer"))
