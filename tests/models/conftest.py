"""A tiny tokenizer and models for the tests of this room."""

import pytest

from megatron_synth.tokens import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["the", "model", "reads", "words", "and", "writes", "other", "words", "after", "them"]
    texts = [" ".join(words[i:] + words[:i]) for i in range(len(words))] * 5
    train_tokenizer(texts, 320, folder)
    return folder
