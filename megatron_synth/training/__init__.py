"""Training: windows in, checkpoints and metrics out; validation losses by document.

In: a map-style dataset of Megatron-Core's sample dicts, a `ModelConfig`, a `TrainConfig`. Out, in
the given folder: `checkpoints/step_00000123/` (Megatron distributed checkpoints), `metrics.jsonl`.
`kill -9` at any time, then the same call again, ends with the same weights, bit for bit on a CPU.
Cost: the quickstart's 1.8M parameters train at 5,000 to 8,000 tokens/s on one CPU core, near
the core's peak (57 % matrix products, 28 % attention).
"""

from typing import TYPE_CHECKING, Any

from megatron_synth.training.config import OptimizerSettings, ScheduleSettings, TrainConfig
from megatron_synth.training.job import TrainJob

if TYPE_CHECKING:
    from megatron_synth.training.checkpoints import CheckpointState, read_state
    from megatron_synth.training.inference import (
        document_losses,
        export_hugging_face,
        import_hugging_face,
        load_for_inference,
    )
    from megatron_synth.training.loop import train
    from megatron_synth.training.result import TrainResult
    from megatron_synth.training.running import run_job
    from megatron_synth.training.stopping import TrainingStoppedError

_LAZY = {
    "CheckpointState": "checkpoints",
    "read_state": "checkpoints",
    "document_losses": "inference",
    "export_hugging_face": "inference",
    "import_hugging_face": "inference",
    "load_for_inference": "inference",
    "TrainingStoppedError": "stopping",
    "run_job": "running",
    "TrainResult": "result",
    "train": "loop",
}

__all__ = [
    "CheckpointState",
    "OptimizerSettings",
    "ScheduleSettings",
    "TrainConfig",
    "TrainJob",
    "TrainResult",
    "TrainingStoppedError",
    "document_losses",
    "export_hugging_face",
    "import_hugging_face",
    "load_for_inference",
    "read_state",
    "run_job",
    "train",
]


def __getattr__(name: str) -> Any:
    """Load what needs torch on first use only."""
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
