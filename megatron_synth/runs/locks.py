"""Lock files: who may work in a folder. They are free again when their process ends, however."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from megatron_synth.config import RunError
from megatron_synth.runs.atomic import disk_errors


@contextmanager
def exclusive(
    path: Path, what: str, patience: float = 30.0, remove: bool = False
) -> Iterator[None]:
    """Hold the lock file `path`; it is free again when the block, or this process, ends.

    Args:
        path: The lock file; it holds the owner's process id.
        what: What is locked, for the message.
        patience: Seconds to wait. What a killed launcher left running needs some to end.
        remove: Remove the file at the end of the block; else it stays.

    Raises:
        RunError: Another process holds it.
    """
    with _lock(path, what, fcntl.LOCK_EX, patience) as handle:
        with disk_errors(path):
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
        try:
            yield
        finally:
            if remove:
                path.unlink(missing_ok=True)


@contextmanager
def shared(path: Path, what: str, patience: float = 30.0) -> Iterator[None]:
    """Hold the lock file `path` together with others that hold it so, and with no other.

    Args:
        path: The lock file.
        what: What is locked, for the message.
        patience: Seconds to wait.

    Raises:
        RunError: Another process holds it for itself.
    """
    with _lock(path, what, fcntl.LOCK_SH, patience):
        yield


@contextmanager
def _lock(path: Path, what: str, how: int, patience: float) -> Iterator[IO[str]]:
    end = time.monotonic() + patience
    with ExitStack() as stack:
        with disk_errors(path):
            handle = stack.enter_context(path.open("a+"))
        while not (_try_lock(handle, how) and _is_still(handle, path)):
            if time.monotonic() > end:
                handle.seek(0)
                owner = handle.read().strip() or "unknown"
                raise RunError(
                    f"another process (pid {owner}) is working on it",
                    where=what,
                    fix="Wait for it, or end it, then run the same command again.",
                )
            time.sleep(0.1)
            stack.close()  # the owner may have removed the file that we waited for
            handle = stack.enter_context(path.open("a+"))
        yield handle


def _is_still(handle: IO[str], path: Path) -> bool:
    """Whether `path` is still the file that `handle` has open."""
    try:
        return os.fstat(handle.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _try_lock(handle: IO[str], how: int) -> bool:
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
