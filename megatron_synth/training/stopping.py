"""Ending a run early: who asks, that all ranks agree, and with which status."""

import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_synth.config import RunError
from megatron_synth.runtime import device
from megatron_synth.training.rules import StoppingSettings, is_too_slow

REQUEUE_STATUS = 75
"""EX_TEMPFAIL: try again."""


class TrainingStoppedError(RunError):
    """A checkpoint was saved before the time was up; the same call goes on from there."""

    exit_status = REQUEUE_STATUS


class Reason(IntEnum):
    """Why a rank asks for an end; where ranks differ, the highest counts."""

    NONE = 0
    SLOW = 1
    HOURS = 2
    SIGNAL = 3


class StopRequests:
    """What asks this rank to stop: a signal, the clock, a throughput that stays too low.

    Args:
        settings: The limits.
        signals: Set by a signal.
        began: `time.monotonic()` when the call began.
    """

    def __init__(self, settings: StoppingSettings, signals: threading.Event, began: float) -> None:
        self._settings, self._signals, self._began = settings, signals, began
        self._speeds: deque[float] = deque(maxlen=settings.slow_steps)

    def saw(self, tokens_per_second: float) -> None:
        """Note a step's throughput."""
        self._speeds.append(tokens_per_second)

    def reason(self) -> Reason:
        """Why this rank would stop now."""
        if self._signals.is_set():
            return Reason.SIGNAL
        hours = self._settings.max_hours
        if hours is not None and time.monotonic() - self._began >= hours * 3600:
            return Reason.HOURS
        return Reason.SLOW if is_too_slow([*self._speeds], self._settings) else Reason.NONE

    def error(self, reason: Reason, step: int, steps: int, saved: Path | None) -> RunError:
        """What to raise after step `step`, when a checkpoint is saved."""
        again = "Run the same command again to go on from there."
        done = f"after step {step} of {steps}"
        if reason is Reason.SLOW:
            share, settings = self._settings.least_throughput, self._settings
            newest = f", {self._speeds[-1]:,.0f} at last" if self._speeds else ""
            return RunError(
                f"stopped {done}: throughput stayed under {share:.0%} of "
                f"{settings.expected_tokens_per_second:,.0f} tokens/s for {settings.slow_steps} "
                f"steps{newest}",
                where=saved,
                fix="Look for a slow node or storage, or lower stopping.expected_tokens_per_second."
                f" {again}",
            )
        if reason is Reason.HOURS:
            limit = f"{self._settings.max_hours:g} hours are over"
            return TrainingStoppedError(f"stopped {done}: {limit}", where=saved, fix=again)
        return TrainingStoppedError(f"stopped by a signal {done}", where=saved, fix=again)


def agreed(reason: Reason) -> Reason:
    """The highest reason of all ranks; every rank calls it."""
    if dist.get_world_size() == 1:
        return reason
    highest = torch.tensor([int(reason)], device=device())
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return Reason(int(highest.item()))


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Turn SIGTERM and SIGUSR1 into an event, where signals can be caught (the main thread)."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGTERM, signal.SIGUSR1)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
