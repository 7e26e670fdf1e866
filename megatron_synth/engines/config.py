"""Which engine a step asks, as its config says it, and the engine that this makes."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from megatron_synth.engines.endpoint import EndpointConfig, EndpointEngine
from megatron_synth.engines.requests import Engine
from megatron_synth.engines.server import ServerConfig, ServerEngine
from megatron_synth.engines.vllm_engine import VllmConfig, VllmEngine
from megatron_synth.tokens import Tokenizer


def _kind_of(value: Any) -> Any:
    """The tag of a config or of the mapping that is to become one: vLLM where none is named."""
    if isinstance(value, Mapping):
        return value.get("kind", "vllm")
    return getattr(value, "kind", None)


EngineConfig = Annotated[
    Annotated[VllmConfig, Tag("vllm")]
    | Annotated[ServerConfig, Tag("server")]
    | Annotated[EndpointConfig, Tag("endpoint")],
    Discriminator(
        _kind_of,
        custom_error_type="engine_kind",
        custom_error_message="kind must be vllm (the default), server or endpoint",
    ),
]
"""Settings of an engine; `kind` says which one, and `vllm` need not be said."""


def make_engine(
    config: EngineConfig,
    model_folder: Path | None,
    tokenizer: Tokenizer | None = None,
    banned_ids: Iterable[int] = (),
) -> Engine:
    """Start the engine that `config` describes.

    Args:
        config: One of the configs of `EngineConfig`.
        model_folder: The model in Hugging Face form; an endpoint has its own and needs none.
        tokenizer: The model's; encodes text prompts and decodes answers. An endpoint does both
            itself.
        banned_ids: Token ids that are never sampled. An endpoint knows no such thing: what it
            sends is text, from which it leaves out control tokens itself.

    Raises:
        DataError: The model folder is missing or damaged.
        ConfigError: The model cannot be run here, or the endpoint's key is not set.
        RunError: The engine failed to start.
    """
    if isinstance(config, EndpointConfig):
        return EndpointEngine(config)
    if model_folder is None:
        raise ValueError(f"an engine of kind {config.kind} needs a model folder")
    if isinstance(config, ServerConfig):
        return ServerEngine(config, model_folder, tokenizer=tokenizer, banned_ids=banned_ids)
    return VllmEngine(config, model_folder, tokenizer=tokenizer, banned_ids=banned_ids)


def gpus_of(config: EngineConfig) -> int:
    """GPUs that one such engine takes on a machine that has any."""
    return 0 if isinstance(config, EndpointConfig) else config.tensor_parallel
