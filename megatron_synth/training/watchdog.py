"""A run that hangs says where, and leaves, so that a scheduler can start it again."""

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path
from typing import Self

from megatron_synth.runs import get_logger
from megatron_synth.training.stopping import REQUEUE_STATUS

_LOOKS = 20  # at the clock, in the time after which a rank hangs

_log = get_logger(__name__)


class HangWatchdog:
    """Ends this process when nothing has happened for a while; a context manager.

    What all threads were doing goes to standard error, the rank's log, and to
    `hang_rank_N.txt` in `out`. Then the process leaves with status 75 and no cleaning up. It waits
    before it does, since a launcher ends all ranks when one leaves: the others, which wait for the
    same thing, are to tell too.

    Args:
        minutes: How long nothing may happen; None: for ever, and no thread is started.
        out: The run's folder.
        rank: This process's rank.
    """

    def __init__(self, minutes: float | None, out: Path, rank: int) -> None:
        self._seconds = None if minutes is None else minutes * 60
        self._path = out / f"hang_rank_{rank}.txt"
        self._last = time.monotonic()
        self._closed = threading.Event()

    def beat(self) -> None:
        """Something happened."""
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        """Start to watch."""
        self.beat()
        if self._seconds is not None:
            threading.Thread(
                target=self._watch, args=(self._seconds,), name="hang watchdog", daemon=True
            ).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._closed.set()

    def _watch(self, seconds: float) -> None:
        while not self._closed.wait(seconds / _LOOKS):
            if time.monotonic() - self._last > seconds:
                self._leave(seconds)

    def _leave(self, seconds: float) -> None:
        try:
            _log.error("nothing happened for %g s: hung; see %s", seconds, self._path)
            faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
            with self._path.open("w", encoding="utf-8") as handle:
                faulthandler.dump_traceback(file=handle, all_threads=True)
            time.sleep(3 * seconds / _LOOKS)  # the others look as often
        finally:  # a full disk must not keep it here
            os._exit(REQUEUE_STATUS)
