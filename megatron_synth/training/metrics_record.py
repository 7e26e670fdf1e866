"""What a step's record in `metrics.jsonl` holds."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from megatron_synth.models import ModelConfig, training_flops
from megatron_synth.training.config import TrainConfig
from megatron_synth.training.expert_load import ExpertLoad
from megatron_synth.training.forward import BatchLoss
from megatron_synth.training.hardware import memory_used, peak_here


class Recorder:
    """Makes the records of a run; every rank calls it, rank 0 writes them.

    Args:
        config: How the run trains.
        model_config: What it trains.
        model: This rank's part of the model, not wrapped.
        names: Of each `dataset_id`.
        streams: Of each `dataset_id`, the stream that it is part of; empty: not known.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        config: TrainConfig,
        model_config: ModelConfig,
        model: torch.nn.Module,
        names: Sequence[str],
        streams: Sequence[str],
        dtype: torch.dtype,
    ) -> None:
        self._config = config
        self._names, self._streams = names, streams
        flops = training_flops(model_config, config.sequence_length, config.sequence_length)
        self._flops = flops / dist.get_world_size()  # of a window, on each device
        asked = config.logging.peak_tflops
        self._peak = peak_here(dtype) if asked is None else asked * 1e12
        moe = model_config.moe
        self._experts = (
            ExpertLoad(model, model_config.num_layers, moe.num_experts, moe.top_k) if moe else None
        )

    def record(
        self,
        step: int,
        loss: BatchLoss,
        *,
        rate: float,
        norm: float,
        seconds: float,
        waited: float,
    ) -> dict[str, Any]:
        """The record of a step: losses in nats a token, seconds, bytes, 10^12 FLOP/s a device."""
        windows = self._config.batch_sizes.at(step)
        tokens, speed = windows * self._config.sequence_length, windows * self._flops / seconds
        losses = loss.by_dataset()
        record: dict[str, Any] = {
            "loss": loss.mean,
            "loss_by_dataset": _means(losses, self._names),
            "lr": rate,
            "grad_norm": norm,
            "tokens": self._config.tokens_through(step),
            "tokens_per_second": tokens / seconds,
            "seconds": seconds,
            "data_seconds": waited,
            "tflops_per_device": speed / 1e12,
            "memory_bytes": memory_used(),
        }
        if self._streams:
            record["loss_by_stream"] = _means(losses, self._streams)
        if self._peak is not None:
            record["mfu"] = speed / self._peak
        if self._experts is not None:
            record["experts"] = self._experts.take()
        return record


def _means(losses: Mapping[int, tuple[float, int]], names: Sequence[str]) -> dict[str, float]:
    """Mean loss of all datasets that have the same name."""
    sums: dict[str, tuple[float, int]] = {}
    for number, (nll, tokens) in losses.items():
        name = names[number] if number < len(names) else str(number)
        before = sums.get(name, (0.0, 0))
        sums[name] = before[0] + nll, before[1] + tokens
    return {name: nll / tokens for name, (nll, tokens) in sums.items()}
