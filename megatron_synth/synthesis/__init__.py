"""Synthesis: documents in, new documents with their provenance out.

`synthesize` runs a method's requests on an engine inside a NeMo Curator pipeline, commits every
answer, filters, and writes kept and dropped documents. A method says which documents to make, and
writes each by asking and answering (`contract.Method`, one file each under `methods/`); the stages
(`stages.GenerationStage`, `FilterStage`, `WriteStage`) also fit into other Curator pipelines.
Cost: about 20 s to start Ray and vLLM, then the engine's speed; under 6 GB on two cores.
"""

from megatron_synth.synthesis.array import ArrayTask, find_array_task
from megatron_synth.synthesis.config import FilterConfig, RayConfig, SynthesisConfig
from megatron_synth.synthesis.contract import Item, Method, Writing, request_key
from megatron_synth.synthesis.filters import REASONS, drop_reason, drop_reasons
from megatron_synth.synthesis.generator import Generator, describe_generator
from megatron_synth.synthesis.merging import DOCUMENTS, DROPPED
from megatron_synth.synthesis.methods.making import load_prompts
from megatron_synth.synthesis.run import COUNTS, synthesize, synthesize_share

__all__ = [
    "COUNTS",
    "DOCUMENTS",
    "DROPPED",
    "REASONS",
    "ArrayTask",
    "FilterConfig",
    "Generator",
    "Item",
    "Method",
    "RayConfig",
    "SynthesisConfig",
    "Writing",
    "describe_generator",
    "drop_reason",
    "drop_reasons",
    "find_array_task",
    "load_prompts",
    "request_key",
    "synthesize",
    "synthesize_share",
]
