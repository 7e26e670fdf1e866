"""Which corpus serves sample i, and which of its windows: arithmetic on i.

A corpus with n of T windows is due q = n * global_batch_size / T windows a step. Every step gives
it q rounded down or up, and after every step it has had its exact due, rounded down or up: the
shares of a step are right to less than one window, and the error never grows. For more than two
corpora that is not a matter of rounding sums: it is the problem of giving M processors to
periodic tasks so that each task's lag stays under one slot, which PD2 solves (Anderson and
Srinivasan, Mixed Pfair/ERfair scheduling of asynchronous periodic tasks, JCSS 68, 2004): of the
corpora that may have an extra window, the earliest deadline goes first.

Only the corpora's counts at every 256th step are kept; one block of steps is replayed (well under
a millisecond) when a sample of it is first asked for.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from megatron_synth.blending.plan import Plan

_BLOCK = 256
_BLOCKS_KEPT = 1024
_MOST_STEPS = 1 << 31

Int64s = NDArray[np.int64]


class Schedule:
    """The order in which corpora serve windows.

    Args:
        windows: Windows of each corpus in all; the sum is `steps` x `batch`.
        steps: Optimizer steps.
        batch: Windows a step.
    """

    def __init__(self, windows: Sequence[int], steps: int, batch: int) -> None:
        assert sum(windows) == steps * batch, f"{windows} is not {steps} x {batch}"
        self.windows = tuple(windows)
        self.steps = steps
        self.batch = batch
        self._base = np.array([n // steps for n in windows], dtype=np.int64)
        assert steps < _MOST_STEPS, f"{steps} steps"
        extras = np.array([n % steps for n in windows], dtype=np.int64)
        self._a_step = int(extras.sum()) // steps
        self._corpora = np.flatnonzero(extras)  # those that have extra windows
        self._dues = extras[self._corpora]
        # Extras had before each block, as far as it is known.
        self._at_block = np.zeros((1, len(self._dues)), dtype=np.int64)
        self._blocks: OrderedDict[int, Int64s] = OrderedDict()

    def before(self, step: int) -> tuple[int, ...]:
        """Windows of each corpus in the first `step` steps."""
        assert 0 <= step <= self.steps, f"step {step} of {self.steps}"
        if step == self.steps:
            return self.windows
        block, row = divmod(step, _BLOCK)
        return tuple(self._block(block)[row].tolist())

    def locate(self, samples: Int64s) -> tuple[Int64s, Int64s]:
        """Corpus and window of each of `samples`.

        Args:
            samples: int64[n], each in [0, steps x batch).

        Returns:
            Corpus index int64[n], and the window's number among those of its corpus int64[n].
        """
        corpora = np.empty_like(samples)
        numbers = np.empty_like(samples)
        steps, places = np.divmod(samples, self.batch)
        for step in np.unique(steps).tolist():
            here = np.flatnonzero(steps == step)
            block, row = divmod(step, _BLOCK)
            table = self._block(block)
            counts = tuple((table[row + 1] - table[row]).tolist())
            served_by, turns = _interleave(counts)
            corpora[here] = served_by[places[here]]
            numbers[here] = table[row][corpora[here]] + turns[places[here]]
        return corpora, numbers

    def _block(self, number: int) -> Int64s:
        """Windows of each corpus before each step of a block, and after its last."""
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        known = len(self._at_block) - 1
        if known < number:
            ahead = max(number, min(2 * known, self.steps // _BLOCK))  # doubling: few copies
            rows = self._replay(known, ahead - known + 1, every=_BLOCK)
            self._at_block = np.concatenate([self._at_block, rows[1:]])
        first = number * _BLOCK
        rows = self._replay(number, min(_BLOCK, self.steps - first) + 1)
        table: Int64s = np.arange(first, first + len(rows))[:, None] * self._base
        table[:, self._corpora] += rows
        self._blocks[number] = table
        if len(self._blocks) > _BLOCKS_KEPT:
            self._blocks.popitem(last=False)
        return table

    def _replay(self, block: int, count: int, every: int = 1) -> Int64s:
        """Extras had, int64[count, tasks], before every `every`th step from a block on."""
        from megatron_synth.blending import pd2  # planning alone does not wait for a compiler

        rows = np.empty((count, len(self._dues)), dtype=np.int64)
        had = self._at_block[block].copy()
        pd2.replay(had, self._dues, self.steps, self._a_step, block * _BLOCK, every, rows)
        return rows


def schedule_of(plan: Plan) -> Schedule:
    """The schedule of a plan's corpora."""
    return Schedule([c.windows for c in plan.corpora], plan.steps, plan.global_batch_size)


@lru_cache(maxsize=256)
def _interleave(counts: tuple[int, ...]) -> tuple[Int64s, Int64s]:
    """Spread `counts` windows of each corpus evenly over one global batch.

    Turn k of a corpus with x windows stands at (2k + 1) / 2x of the batch; ties go to the corpus
    named first. Returns the corpus at each place, and the turn of that corpus, int64 each.
    """
    turns = np.concatenate([np.arange(x) for x in counts])
    served_by = np.repeat(np.arange(len(counts)), counts)
    denominators = np.repeat(np.array(counts), counts)
    order = np.lexsort((served_by, (2 * turns + 1) / (2 * denominators)))
    return served_by[order], turns[order]
