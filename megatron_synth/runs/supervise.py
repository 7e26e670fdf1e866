"""Run one command so that nothing which it started outlives it, or its launcher.

`python -m megatron_synth.runs.supervise COMMAND …` becomes the reaper of all descendants of
COMMAND (PR_SET_CHILD_SUBREAPER: daemons come back to it), watches its own standard input, which
the launcher holds open, and ends them all when COMMAND ends or when the launcher is gone, even by
`kill -9`. It leaves with COMMAND's exit status (128 + n for signal n).
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_GRACE_SECONDS = 20.0


def main() -> int:
    """Run `sys.argv[1:]`, clean up, and return its exit status."""
    libc = adopt_orphans()
    # A kill -9 of this process must still take the command along.
    child = subprocess.Popen(
        sys.argv[1:],
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: libc.prctl(  # noqa: PLW1509 - this process has one thread
            _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0
        ),
    )
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher decides what Ctrl-C means
    deadline: float | None = None
    while child.poll() is None:
        try:
            orphaned = bool(select.select([0], [], [], 0.2)[0]) and not os.read(0, 1)
        except InterruptedError:
            continue
        if (orphaned or asked) and deadline is None:
            child.terminate()  # a training step saves a checkpoint and leaves
            deadline = time.monotonic() + _GRACE_SECONDS
        if orphaned:
            time.sleep(0.2)  # end of file is readable for ever: do not spin on it
        if deadline is not None and time.monotonic() > deadline:
            child.kill()
    end_children()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def adopt_orphans() -> ctypes.CDLL:
    """Become the parent of every descendant that loses its own; gives libc, for further calls."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    return libc


def end_children(keep: Collection[int] = ()) -> None:
    """Kill this process's children, but those whose pid is in `keep`, with all of their own."""
    while children := [c for c in psutil.Process().children() if c.pid not in keep]:
        for child in children:
            # What it leaves behind comes back to us, and is met in the next round.
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=5)


if __name__ == "__main__":
    sys.exit(main())
