"""Let Megatron-Core run on a machine without CUDA.

Megatron-Core writes `device="cuda"` and `torch.cuda.current_device()` into its sources. `install`
hands its modules a stand-in for the global name `torch`: the same module, but with a `cuda` that
does its work on the CPU, and with tensor factories that read the device "cuda" as "cpu". The real
`torch` stays as it is, so other libraries in the process (transformers, vLLM) see no change but
one: `Tensor.cuda()`, which could only raise here, returns the tensor itself.

With CUDA present `install` leaves torch and Megatron-Core's use of it as they are. On every
machine without Transformer Engine it binds a name that Megatron-Core reads but never sets there.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

from megatron_synth.runs import get_logger
from megatron_synth.runtime import distributed_optimizer, float64

TESTED_MEGATRON_CORE = ("0.16.1",)
"""Versions of Megatron-Core that this shim was tested with."""

_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "empty_like", "zeros_like")

# Everything on the way of a training step, so that it is loaded before its `torch` is replaced.
_MODULES = (
    "dist_checkpointing",
    "dist_checkpointing.exchange_utils",
    "dist_checkpointing.strategies.torch",
    "distributed",
    "distributed.finalize_model_grads",
    "models.gpt",
    "models.gpt.gpt_layer_specs",
    "optimizer",
    "optimizer.clip_grads",
    "optimizer.distrib_optimizer",
    "parallel_state",
    "pipeline_parallel",
    "pipeline_parallel.p2p_communication",
    "pipeline_parallel.schedules",
    "tensor_parallel",
    "tensor_parallel.random",
    "transformer.moe.moe_layer",
    "transformer.moe.token_dispatcher",
    "utils",
)

_log = get_logger(__name__)


def install() -> bool:
    """Adapt Megatron-Core to this machine; calling it again costs nothing.

    Returns:
        True where the shim is in place, False where CUDA is there and computes.
    """
    _bind_name_of_transformer_engine()
    distributed_optimizer.mend()
    if torch.cuda.is_available():
        return False
    _warn_of_untested_version()
    for name in _MODULES:
        importlib.import_module(f"megatron.core.{name}")
    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.core") and getattr(module, "torch", None) is torch:
            module.torch = _torch_on_cpu()  # type: ignore[attr-defined]
    torch.Tensor.cuda = _stay  # type: ignore[method-assign, assignment]
    _replace_functions()
    return True


def _bind_name_of_transformer_engine() -> None:
    """The MoE router asks whether this name is None: a NameError without Transformer Engine."""
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None


@functools.cache
def _warn_of_untested_version() -> None:
    version = importlib.metadata.version("megatron-core")
    if version not in TESTED_MEGATRON_CORE:
        _log.warning(
            "Megatron-Core %s on a CPU is untested; tested: %s",
            version,
            ", ".join(TESTED_MEGATRON_CORE),
        )


def _stay(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return tensor


class _Stream:
    """The one queue of work that a CPU has: everything in it is done already."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Stream)

    def __hash__(self) -> int:
        return 0

    def wait_stream(self, other: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, event: Any = None) -> "_Stream":
        return self

    # Events need these three.
    def record(self, stream: Any = None) -> None: ...

    def wait(self, stream: Any = None) -> None: ...

    def query(self) -> bool:
        return True


@contextlib.contextmanager
def _no_stream(*_: Any) -> Iterator[None]:
    yield


class _Overlay(types.ModuleType):
    """A module with some names replaced."""

    def __init__(self, real: types.ModuleType, replaced: dict[str, Any]) -> None:
        super().__init__(real.__name__)
        # A copy, since every torch function that Megatron-Core calls is looked up here.
        self.__dict__.update(real.__dict__)
        self.__dict__.update(replaced)
        self.__dict__["_real"] = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_real"], name)


@functools.cache
def _torch_on_cpu() -> types.ModuleType:
    def nothing(*_: Any, **__: Any) -> None: ...

    cuda = _Overlay(
        torch.cuda,
        {
            "current_device": lambda: torch.device("cpu"),
            "device_count": lambda: 1,
            "set_device": nothing,
            "synchronize": nothing,
            "empty_cache": nothing,
            "manual_seed": torch.manual_seed,
            "get_rng_state": _get_rng_state,
            "set_rng_state": _set_rng_state,
            "Stream": _Stream,
            "Event": _Stream,
            "current_stream": _Stream,
            "default_stream": _Stream,
            "stream": _no_stream,
        },
    )
    factories = {name: _on_cpu(getattr(torch, name)) for name in _FACTORIES}
    return _Overlay(torch, {"cuda": cuda, "softmax": float64.softmax, **factories})


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        kwargs.pop("pin_memory", None)  # there is nothing to pin for
        return factory(*args, **kwargs)

    return make


def _get_rng_state(*_: Any, **__: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, *_: Any, **__: Any) -> None:
    torch.set_rng_state(state)


def _replace_functions() -> None:
    """Replace the few functions in which the stand-in for `torch` is not enough."""
    from megatron.core.optimizer import optimizer
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer.moe import token_dispatcher

    # They reach into CUDA's generators through names imported from torch.cuda.
    random._get_cuda_rng_state = _get_rng_state
    random._set_cuda_rng_state = _set_rng_state
    random.CudaRNGStatesTracker.fork = _fork
    # Refuses tensors whose type is not torch.cuda.FloatTensor.
    optimizer.clip_grad_by_total_norm_fp32 = _clip_gradients
    # Sums squares in float32, which on a CPU is off by 1e-5 (1e-4 for a large embedding).
    optimizer.get_grad_norm_fp32 = _gradient_norm
    # The all-to-all dispatcher wants split sizes as numpy arrays; the original turns only CUDA
    # tensors into them.
    token_dispatcher.maybe_move_tensor_to_cpu = _to_host
    float64.keep_float64_in_cross_entropy()


@contextlib.contextmanager
def _fork(tracker: Any, name: str = "model-parallel-rng") -> Iterator[None]:
    """Draw from the tracked state `name` inside the block; there is one generator, not two."""
    if name not in tracker.states_:
        raise KeyError(f"random state {name!r} was never added")
    before = torch.get_rng_state()
    torch.set_rng_state(tracker.states_[name])
    try:
        yield
    finally:
        tracker.states_[name] = torch.get_rng_state()
        torch.set_rng_state(before)


def _gradient_norm(
    grads_for_norm: Any, norm_type: float = 2, grad_stats_parallel_group: Any = None
) -> float:
    """The norm of all gradients as one vector, over the ranks of the group, in float64."""
    assert norm_type == 2, "only the Euclidean norm is used"
    single = [grads_for_norm] if isinstance(grads_for_norm, torch.Tensor) else grads_for_norm
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in single]
    squared = torch.stack([*norms, torch.zeros((), dtype=torch.float64)]).square().sum()
    torch.distributed.all_reduce(squared, group=grad_stats_parallel_group)
    return float(squared.sqrt())


def _clip_gradients(
    parameters: Any, max_norm: float, total_norm: float, use_decoupled_grad: bool = False
) -> None:
    """Scale gradients in place so that their norm is at most `max_norm`; the original's formula."""
    assert not use_decoupled_grad, "only Transformer Engine's optimizer decouples gradients"
    coefficient = max_norm / (total_norm + 1.0e-6)
    if coefficient < 1.0:
        single = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        for parameter in single:
            if parameter.grad is not None:
                parameter.grad.detach().mul_(coefficient)


def _to_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    if torch.is_tensor(tensor):
        return tensor.numpy() if as_numpy else tensor
    return tensor
