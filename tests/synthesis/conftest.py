"""A small tokenizer, seed documents and a model folder without a model, for all tests here."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted import WORDS, ScriptedEngine

from megatron_synth.corpus import Document
from megatron_synth.synthesis import Generator, Method, SynthesisConfig, load_prompts
from megatron_synth.synthesis.methods.making import make_method
from megatron_synth.synthesis.methods.sbp import Sbp
from megatron_synth.synthesis.seeds import SeedStore, build_seeds
from megatron_synth.tokens import Tokenizer, train_tokenizer

CONTEXT = 512
LONG_CONTEXT = 8192


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    choose = random.Random(3)
    return [
        Document(f"doc-{n}", " ".join(choose.choice(WORDS) for _ in range(choose.randint(20, 60))))
        for n in range(40)
    ]


@pytest.fixture(scope="session")
def tokenizer(documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer([d.text for d in documents] + WORDS, 320, folder)


@pytest.fixture(scope="session")
def seeds(
    documents: list[Document], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> SeedStore:
    return build_seeds(documents, tokenizer, tmp_path_factory.mktemp("seeds") / "seeds")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What can be read without vLLM: a config, and weights that nobody loads."""
    folder = tmp_path_factory.mktemp("generator")
    (folder / "config.json").write_text(
        json.dumps(
            {
                "max_position_embeddings": CONTEXT,
                "vocab_size": 384,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "hidden_size": 32,
                "dtype": "float32",
            }
        )
    )
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture(scope="session")
def make_prompted(seeds: SeedStore, tokenizer: Tokenizer) -> Callable[..., Method]:
    """A method of any name, as the settings make it."""

    def make(method: str, *, context: int = LONG_CONTEXT, **settings: object) -> Method:
        config = SynthesisConfig(method=method, **settings)
        generator = Generator("generator@0", context, ())
        return make_method(config, load_prompts(config), seeds.folder, tokenizer.folder, generator)

    return make


@pytest.fixture
def engine(tokenizer: Tokenizer) -> ScriptedEngine:
    return ScriptedEngine(tokenizer)


@pytest.fixture
def make_sbp(seeds: SeedStore, tokenizer: Tokenizer) -> Callable[[SynthesisConfig], Sbp]:
    return lambda config: Sbp(config, seeds, tokenizer, CONTEXT, "generator@0")
