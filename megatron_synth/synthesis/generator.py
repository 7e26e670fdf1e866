"""The generator as a synthesis step knows it, before any engine runs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_synth.config import DataError
from megatron_synth.engines import (
    EndpointConfig,
    fingerprint_model,
    read_model_folder,
)
from megatron_synth.engines.chat import read_chat_form
from megatron_synth.runs import hash_json
from megatron_synth.synthesis.config import SynthesisConfig
from megatron_synth.synthesis.methods.defaults import PROMPTLESS
from megatron_synth.synthesis.methods.sbp import banned_ids
from megatron_synth.tokens import Tokenizer

_HASH_DIGITS = 12


@dataclass(frozen=True)
class Generator:
    """A model that writes.

    Attributes:
        name: `name@hash`, as provenance records it; the hash is of all that answers depend on.
        context: In tokens, prompt and answer together.
        banned: Token ids that are never sampled.
    """

    name: str
    context: int
    banned: tuple[int, ...]


def describe_generator(
    config: SynthesisConfig, model_folder: Path, tokenizer: Tokenizer, name: str | None
) -> Generator:
    """Read what is needed of a model's folder.

    Args:
        config: Says how the model is asked. The folder of an endpoint's model needs no weights:
            its config and tokenizer say how long prompts can be.
        model_folder: In Hugging Face form.
        tokenizer: The model's.
        name: The generator's; by default the folder's, or the endpoint's model.

    Raises:
        DataError: The folder is missing or damaged.
        ConfigError: Its chat template cannot be used.
    """
    engine = config.engine
    if isinstance(engine, EndpointConfig):
        content = hash_json([engine.model, engine.chat, engine.system_role, tokenizer.fingerprint])
        label = f"{name or engine.model}@{content[:_HASH_DIGITS]}"
        return Generator(label, _context_of(model_folder), ())
    model = read_model_folder(model_folder)
    banned = tuple(banned_ids(tokenizer, model.vocab_size))
    more: dict[str, Any] = {"tokenizer": tokenizer.fingerprint, "banned": list(banned)}
    if config.method not in PROMPTLESS:
        form = read_chat_form(model_folder, tokenizer, engine.chat, engine.chat_options)
        more["chat"] = form.fingerprint if form else None
    content = fingerprint_model(model_folder, **more)
    context = min(engine.max_model_len or model.context, model.context)
    return Generator(f"{name or model_folder.name}@{content[:_HASH_DIGITS]}", context, banned)


def _context_of(folder: Path) -> int:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return int({**config, **config.get("text_config", {})}["max_position_embeddings"])
    except FileNotFoundError:
        raise DataError(
            "config.json is missing",
            where=folder,
            fix="Give the folder of the endpoint's model: its config.json and its tokenizer say "
            "how long prompts can be; weights are not needed.",
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"not a usable model config: {type(error).__name__}: {error}", where=path
        ) from error
