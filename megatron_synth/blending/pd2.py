"""The compiled loop of the schedule: PD2 (see `schedule`)."""

from typing import Any

import numpy as np

from megatron_synth.runs.compiling import compiled


@compiled
def _ceil(numerator: Any, denominator: Any) -> Any:
    return -(-numerator // denominator)


@compiled
def replay(had: Any, dues: Any, steps: int, a_step: int, first: int, every: int, rows: Any) -> None:
    """Give out extra windows, `a_step` of them in each step from `first` on; see `schedule`.

    Args:
        had: int64[tasks], extra windows that each corpus has had; ends as the last row.
        dues: int64[tasks], extra windows of each in all, 0 < due < steps.
        steps: Steps in all, under 2**31, so that a product of two fits.
        a_step: Extra windows a step.
        first: The step of the first row.
        every: Steps from one row to the next.
        rows: int64[n, tasks], filled with what each has had before each of these steps.
    """
    tasks = len(dues)
    release = np.empty(tasks, dtype=np.int64)
    rank = np.empty((tasks, 3), dtype=np.int64)  # PD2's priority, smallest first
    for i in range(tasks):
        release[i] = had[i] * steps // dues[i]
        _set_priority(rank[i], had[i], dues[i], steps)
    given = np.empty(tasks, dtype=np.bool_)
    for row in range(len(rows)):
        rows[row] = had
        if row + 1 == len(rows):
            break
        for step in range(first + row * every, first + (row + 1) * every):
            given[:] = False
            for _ in range(a_step):
                best = -1
                for i in range(tasks):
                    if given[i] or release[i] > step:
                        continue
                    if best < 0 or _is_before(rank[i], rank[best]):
                        best = i
                if best < 0:
                    break
                given[best] = True
            for i in range(tasks):
                if given[i]:
                    had[i] += 1
                    release[i] = had[i] * steps // dues[i]
                    _set_priority(rank[i], had[i], dues[i], steps)


@compiled
def _is_before(rank: Any, other: Any) -> Any:
    """Whether `rank` goes first; of equals the one that stands first."""
    for k in range(3):
        if rank[k] != other[k]:
            return rank[k] < other[k]
    return False


@compiled
def _set_priority(rank: Any, had: Any, due: Any, steps: Any) -> None:
    """PD2's order: deadline, overlap bit, group deadline."""
    turn = (had + 1) * steps
    deadline = _ceil(turn, due)
    rank[0] = deadline
    rank[1] = -1 if turn % due != 0 else 0
    rank[2] = 0
    if 2 * due >= steps:
        idle = steps - due
        rank[2] = -_ceil(_ceil(deadline * idle, steps) * steps, idle)
