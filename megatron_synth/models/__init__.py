"""Models: what one is (`ModelConfig`, presets), how Megatron-Core builds it, to and from HF.

In: a preset name or explicit sizes. Out: a Megatron-Core `GPTModel` whose initial weights do not
depend on how it is split over ranks; a Hugging Face folder with the same logits, and a model of
ours out of such a folder; parameter counts, and what training takes.
Cost: configs, presets and counts import neither torch nor Megatron-Core.
"""

from typing import TYPE_CHECKING, Any

from megatron_synth.models.config import ModelConfig, MoEConfig
from megatron_synth.models.layout import check_layout
from megatron_synth.models.memory import TrainingMemory, training_memory
from megatron_synth.models.parameters import ParameterCounts, count_parameters, training_flops
from megatron_synth.models.presets import PRESETS

if TYPE_CHECKING:
    from megatron_synth.models.build import build_model
    from megatron_synth.models.hugging_face import write_hugging_face
    from megatron_synth.models.hugging_face_reader import read_hugging_face
    from megatron_synth.models.initial_weights import initialise, load_whole_weights

_LAZY = {
    "build_model": "build",
    "initialise": "initial_weights",
    "load_whole_weights": "initial_weights",
    "read_hugging_face": "hugging_face_reader",
    "write_hugging_face": "hugging_face",
}

__all__ = [
    "PRESETS",
    "MoEConfig",
    "ModelConfig",
    "ParameterCounts",
    "TrainingMemory",
    "build_model",
    "check_layout",
    "count_parameters",
    "initialise",
    "load_whole_weights",
    "read_hugging_face",
    "training_flops",
    "training_memory",
    "write_hugging_face",
]


def __getattr__(name: str) -> Any:
    """Load what needs torch on first use only."""
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
