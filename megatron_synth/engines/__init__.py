"""Engines: text or token ids in; text, token ids or embeddings out.

`VllmEngine` answers requests with continuous batching inside this process, `ServerEngine` does so
with a vLLM server that it starts and ends, `EndpointEngine` asks any OpenAI-compatible server;
`make_engine` starts the one that a config names. A chat model gets a text prompt in its own chat
form, and no document in it can become a control token (`ChatForm`). `RequestLog` commits each
finished request, so that a killed run asks again only for what was in flight; `embed_documents`
turns documents into vectors.
Cost: vLLM starts in 10 to 35 s; then 2,500 to 5,000 tokens/s on two CPU cores for a model of one
million parameters. The log costs about 1 % of that. Importing this room loads neither torch nor
vLLM.
"""

from megatron_synth.engines.chat import ChatForm, read_chat_form
from megatron_synth.engines.config import EngineConfig, gpus_of, make_engine
from megatron_synth.engines.endpoint import EndpointConfig, EndpointEngine
from megatron_synth.engines.failures import classify_failure
from megatron_synth.engines.log import RequestLog
from megatron_synth.engines.model_folder import ModelFolder, fingerprint_model, read_model_folder
from megatron_synth.engines.requests import Completion, Engine, Request, Sampling, complete
from megatron_synth.engines.server import ServerConfig, ServerEngine
from megatron_synth.engines.vllm_engine import VllmConfig, VllmEngine

__all__ = [
    "ChatForm",
    "Completion",
    "EndpointConfig",
    "EndpointEngine",
    "Engine",
    "EngineConfig",
    "ModelFolder",
    "Request",
    "RequestLog",
    "Sampling",
    "ServerConfig",
    "ServerEngine",
    "VllmConfig",
    "VllmEngine",
    "classify_failure",
    "complete",
    "fingerprint_model",
    "gpus_of",
    "make_engine",
    "read_chat_form",
    "read_model_folder",
]
