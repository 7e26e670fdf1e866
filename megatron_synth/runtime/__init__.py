"""Device and process group: CUDA with NCCL, or a CPU with gloo. The rooms below ask no further.

In: how the model is split over ranks (`ParallelConfig`) and a seed. Out: torch.distributed,
Megatron-Core's parallel state and its random number trackers, ready on every rank; under torchrun
as well as in a plain process. The only room that adapts Megatron-Core to a machine without CUDA
(`cpu_shim.py`).
Cost: about 4 s for the first import of torch and Megatron-Core; this file imports neither.
"""

from typing import TYPE_CHECKING, Any

from megatron_synth.runtime.layout import ParallelConfig

if TYPE_CHECKING:
    from megatron_synth.runtime.process_group import (
        device,
        host_group,
        initialize,
        is_main_rank,
        shutdown,
    )

__all__ = [
    "ParallelConfig",
    "device",
    "host_group",
    "initialize",
    "is_main_rank",
    "shutdown",
]


def __getattr__(name: str) -> Any:
    """Load what needs torch on first use only."""
    if name in __all__:
        from megatron_synth.runtime import process_group

        return getattr(process_group, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
