"""What a device can do, for the MFU."""

import importlib.util

import torch

from megatron_synth.config import ConfigError
from megatron_synth.runtime import device
from megatron_synth.training.config import TrainConfig

# Dense bf16 operations a second with float32 accumulation, from NVIDIA's data sheets, which print
# most of them "with sparsity": twice this. The first name that is part of the device's name holds.
_PEAK: tuple[tuple[str, float], ...] = (
    ("GB200", 2500e12),  # GB200 NVL72: 5,000 with sparsity
    ("B200", 2250e12),  # HGX B200: 36 PFLOP/s with sparsity over 8
    ("GH200", 989.4e12),  # GH200: the same chip as H100 SXM
    ("H200 NVL", 835.5e12),  # H200: 1,671 with sparsity (NVL)
    ("H200", 989.4e12),  # H200: 1,979 with sparsity (SXM)
    ("H100 NVL", 835.5e12),  # H100: 1,671 with sparsity (NVL)
    ("H100 PCIe", 756e12),  # H100 PCIe: 1,513 with sparsity
    ("H100", 989.4e12),  # H100: 1,979 with sparsity (SXM)
    ("H800", 989.4e12),  # H100 with slower links
    ("A100", 312e12),  # A100: 312
    ("A800", 312e12),  # A100 with slower links
    ("A30", 165e12),  # A30: 165
    ("L40S", 362e12),  # L40S: 362
    ("L40", 181e12),  # L40: 181
    ("L4", 121e12),  # L4: 242 with sparsity
    ("A10G", 70e12),  # A10G: 70
    ("RTX 4090", 165.2e12),  # Ada architecture, table 2
    ("RTX 3090", 71e12),  # GA102 architecture, table 2
)


def peak_flops(name: str) -> float | None:
    """Dense bf16 FLOP/s of a device by its name (`torch.cuda.get_device_name`); None: unknown."""
    return next((peak for part, peak in _PEAK if part in name), None)


def peak_here(dtype: torch.dtype) -> float | None:
    """What this rank's device can do in `dtype`; None on a CPU, or where it is not known."""
    if device().type != "cuda" or dtype != torch.bfloat16:
        return None
    return peak_flops(torch.cuda.get_device_name(device()))


def require_engine(config: TrainConfig) -> None:
    """Refuse what only Transformer Engine and its companions can do, where they are not.

    Raises:
        ConfigError: A setting asks for it.
    """
    asked = {
        "context_parallel": ("transformer_engine", config.context_parallel > 1),
        "fp8": ("transformer_engine", config.fp8 is not None),
        "moe_dispatcher": ("deep_ep", config.moe_dispatcher == "flex"),
    }
    for name, (package, wanted) in asked.items():
        if not wanted:
            continue
        lacks = "has no GPU" if device().type != "cuda" else f"has no package {package}"
        if device().type != "cuda" or importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{name}={getattr(config, name)} needs the package {package} and a GPU; this "
                f"machine {lacks}",
                where=f"training.{name}",
                fix="Leave the setting out, or train in an environment that has it.",
            )
    pieces = 2 * config.context_parallel
    if config.context_parallel > 1 and config.sequence_length % pieces:
        raise ConfigError(
            f"windows of {config.sequence_length} tokens cannot be cut into {pieces} pieces for "
            f"context_parallel={config.context_parallel}",
            where="training.context_parallel",
            fix=f"Choose a sequence_length that {pieces} divides.",
        )


def memory_used() -> int:
    """Bytes: the most that tensors took on the GPU so far, or what this process takes now."""
    if device().type == "cuda":
        return int(torch.cuda.max_memory_allocated(device()))
    import psutil

    return int(psutil.Process().memory_info().rss)
