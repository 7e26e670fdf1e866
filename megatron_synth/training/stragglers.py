"""Which rank the others wait for."""

import socket
import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from megatron_synth.runs import get_logger
from megatron_synth.runtime import device, is_main_rank

_MUCH = 1.2  # times the median
_OFTEN = 20  # steps in a row

_log = get_logger(__name__)


class Stragglers:
    """Compares how long the ranks compute before they first wait for all others.

    Up to there, where gradients begin to be summed, data-parallel copies do not wait for each
    other; the ranks of one copy do, so a slow rank shows in those of its copy. A rank that is much
    slower than the median for many steps is named in the log, once.

    Args:
        finalize: Megatron-Core's `finalize_model_grads`.
    """

    def __init__(self, finalize: Callable[..., Any]) -> None:
        self._finalize = finalize
        self._began = self._taken = 0.0
        self._slowest: deque[int] = deque(maxlen=_OFTEN)
        self._named: set[int] = set()
        self._hosts = [socket.gethostname()]
        if dist.get_world_size() > 1:
            self._hosts *= dist.get_world_size()
            dist.all_gather_object(self._hosts, socket.gethostname())

    def begin(self) -> None:
        """A step begins."""
        self._began = time.perf_counter()

    def finalize(self, *arguments: Any, **named: Any) -> Any:
        """`finalize_model_grads`, with a look at the clock before."""
        if device().type == "cuda" and dist.get_world_size() > 1:
            torch.cuda.current_stream().synchronize()  # what was asked for is not done before that
        self._taken = time.perf_counter() - self._began
        return self._finalize(*arguments, **named)

    def compare(self) -> dict[str, float] | None:
        """The slowest rank of the step and its time over the median's; every rank calls it.

        Returns:
            `slowest` and `over_median`; None where there is one rank.
        """
        if dist.get_world_size() == 1:
            return None
        times = torch.zeros(dist.get_world_size(), dtype=torch.float64, device=device())
        times[dist.get_rank()] = self._taken
        dist.all_reduce(times)
        return self._judged(times.tolist())

    def _judged(self, times: list[float]) -> dict[str, float]:
        slowest = max(range(len(times)), key=times.__getitem__)
        ratio = times[slowest] / max(median(times), 1e-9)
        self._slowest.append(slowest if ratio > _MUCH else -1)
        lasting = self._slowest.count(slowest) == _OFTEN
        if lasting and slowest not in self._named and is_main_rank():
            self._named.add(slowest)
            _log.warning(
                "rank %d on %s has been the slowest for %d steps: %.1f times the median",
                slowest,
                self._hosts[slowest],
                _OFTEN,
                ratio,
            )
        return {"slowest": float(slowest), "over_median": ratio}
