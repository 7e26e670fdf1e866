"""Start and end torch.distributed and Megatron-Core's parallel state."""

import atexit
import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from megatron_synth.config import ConfigError, RunError
from megatron_synth.runs import get_logger
from megatron_synth.runtime import cpu_shim
from megatron_synth.runtime.layout import ParallelConfig, virtual_stages

_TIMEOUT = timedelta(minutes=30)

_log = get_logger(__name__)
_state: dict[str, Any] = {}


def device() -> torch.device:
    """Where this rank computes: its own GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def is_main_rank() -> bool:
    """Whether this process writes files and shows progress (rank 0, or no ranks at all)."""
    return not dist.is_initialized() or dist.get_rank() == 0


def host_group() -> Any:
    """All ranks, over gloo and beside all other groups: for a thread that does not train."""
    return _state["host_group"]


def initialize(
    parallel: ParallelConfig | None = None, *, seed: int = 0, threads: int | None = None
) -> None:
    """Make every rank ready for Megatron-Core; idempotent for the same layout.

    Reads torchrun's environment (RANK, WORLD_SIZE, MASTER_ADDR, …) where it is set; else this
    process is the only rank and no port is opened. Another layout than the current one ends the
    current one first.

    Args:
        parallel: The model's layout; one rank a model by default.
        seed: Seeds torch and Megatron-Core's trackers (dropout); initial weights do not depend
            on it but on the seed given to `models.initialise`.
        threads: CPU threads of this rank. Fix it where results must be bit-identical: the order
            of summation depends on it. None leaves torch's choice.

    Raises:
        ConfigError: The ranks do not fit the layout.
        RunError: The process group could not be formed.
    """
    from megatron.core import parallel_state, tensor_parallel

    parallel = parallel or ParallelConfig()
    if threads is not None:
        torch.set_num_threads(threads)
    on_cpu = cpu_shim.install()
    if _state.get("parallel") not in (None, parallel):
        parallel_state.destroy_model_parallel()
        _state.pop("parallel")
    if not dist.is_initialized():
        _join_ranks("gloo" if on_cpu else "nccl")
        atexit.register(shutdown)
    parallel.data_parallel(dist.get_world_size())
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor_parallel,
            pipeline_model_parallel_size=parallel.pipeline_parallel,
            virtual_pipeline_model_parallel_size=virtual_stages(parallel),
            context_parallel_size=parallel.context_parallel,
            expert_model_parallel_size=parallel.expert_parallel,
            expert_tensor_parallel_size=parallel.expert_tensor_parallel,
            create_gloo_process_groups=False,
        )
    _state["parallel"] = parallel
    if "host_group" not in _state:
        _state["host_group"] = dist.new_group(backend="gloo", timeout=_TIMEOUT)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)


def _join_ranks(backend: str) -> None:
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    try:
        if "RANK" in os.environ and world_size > 1:
            dist.init_process_group(backend, timeout=_TIMEOUT)
        else:
            dist.init_process_group(
                backend, store=dist.HashStore(), rank=0, world_size=1, timeout=_TIMEOUT
            )
    except ValueError as error:  # RANK without MASTER_ADDR and the like
        raise ConfigError(
            f"the ranks' environment is incomplete: {error}",
            fix="Start several ranks with torchrun, or unset RANK and WORLD_SIZE.",
        ) from error
    except (RuntimeError, dist.DistError) as error:
        raise RunError(
            f"the ranks could not reach each other: {str(error).splitlines()[0]}",
            where=f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}",
            fix="Another program may use that port: give torchrun another one (--master-port), "
            "or use --standalone on a single machine.",
        ) from error


def shutdown() -> None:
    """Leave the process group; safe to call at any time."""
    from megatron.core import parallel_state

    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
    _state.clear()
