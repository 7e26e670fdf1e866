"""How many of the true neighbours an index finds, and how hard it must search to find enough.

Measured on documents of the corpus itself, drawn at random, against exact search. Neighbours that
are near-duplicates (cosine from 0.95) do not count: any index finds those, and pairs drop them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_synth.pairing.config import PairConfig
from megatron_synth.pairing.index import ExactIndex, NeighbourIndex
from megatron_synth.pairing.vectors import Rows
from megatron_synth.runs import get_logger

NEAR_DUPLICATE = 0.95
_K_FACTORS = (1, 2, 4)
"""What the configured `k_factor` is multiplied by, in turn, while more lists do not help."""
_FIRST_EFFORT = 8
_NO_GAIN = 0.002
_log = get_logger(__name__)


@dataclass(frozen=True)
class RecallSample:
    """Documents whose neighbours are known.

    Attributes:
        queries: float32 [s, d], their vectors.
        places: int64 [s], where they stand among the rows.
        truth: int64 [s, k], their exact neighbours; -1 where there is none, for the document itself
            and for near-duplicates.
    """

    queries: NDArray[np.float32]
    places: NDArray[np.int64]
    truth: NDArray[np.int64]

    @classmethod
    def draw(cls, config: PairConfig, rows: Rows) -> "RecallSample":
        """Draw `config.recall_sample` of `rows` and search their neighbours exactly."""
        generator = np.random.default_rng([config.seed, 1])
        size = min(config.recall_sample, len(rows))
        places = np.sort(generator.choice(len(rows), size, replace=False)).astype(np.int64)
        queries = rows.take(places)
        wanted = min(config.neighbours + 1, len(rows))
        similarity, truth = ExactIndex(rows).search(queries, wanted)
        itself = truth == places[:, None]
        beyond = np.cumsum(~itself, axis=1) > config.neighbours
        truth = np.where(itself | beyond | (similarity >= NEAR_DUPLICATE), -1, truth)
        return cls(queries, places, truth)

    def recall(self, index: NeighbourIndex, neighbours: int) -> float:
        """The share of the true neighbours among what `index` finds, 0 to 1; 1 if there are none.

        Args:
            index: Searched with its present settings.
            neighbours: How many are asked for; the document itself comes on top.
        """
        _, found = index.search(self.queries, min(neighbours + 1, len(index.order)))
        found = np.where(found == self.places[:, None], -1, found)
        found[np.cumsum(found >= 0, axis=1) > neighbours] = -1
        # A number for each (document, neighbour): sets of them are compared in one go.
        span = len(index.order)
        base = np.arange(len(found))[:, None] * span
        true = (base + self.truth)[self.truth >= 0]
        hits = np.isin(true, (base + found)[found >= 0], assume_unique=True)
        return float(hits.mean()) if len(true) else 1.0


def tune(config: PairConfig, index: NeighbourIndex, rows: Rows) -> float | None:
    """Set the least effort that reaches `config.recall_target`, and say what recall it gives.

    The effort is doubled until the target is reached, then bisected. Where more effort brings
    nothing, twice and four times the `k_factor` are tried. Without a target the settings stay.

    Returns:
        The recall measured with the settings chosen; None for exact search.
    """
    if index.exact:
        return None
    sample = RecallSample.draw(config, rows)

    def measure(effort: int) -> float:
        index.effort = effort
        return sample.recall(index, config.neighbours)

    target = config.recall_target
    if target is None:
        recall = measure(index.effort)
    else:
        factor, recall = index.k_factor, 0.0
        for times in _K_FACTORS if index.reranks else (1,):
            index.k_factor = factor * times
            recall = _least_effort(measure, target, index)
            if recall >= target:
                break
        if recall < target:
            _log.warning(
                "recall %.3f is all that %s gives (recall_target %.3f): a finer index, such as "
                "ivf_flat, finds more",
                recall,
                index.kind,
                target,
            )
    _log.info("recall %.3f of %s with %s", recall, index.kind, index.settings)
    return recall


def _least_effort(measure: Callable[[int], float], target: float, index: NeighbourIndex) -> float:
    """Leave `index` at the least effort that reaches `target`, or where more brings nothing."""
    low, high = 0, min(_FIRST_EFFORT, index.max_effort)
    recall = measure(high)
    while recall < target and high < index.max_effort:
        low, high = high, min(2 * high, index.max_effort)
        before, recall = recall, measure(high)
        if recall < target and recall - before < _NO_GAIN:
            return recall
    if recall < target:
        return recall
    while high - low > max(1, high // 16):
        middle = (low + high) // 2
        found = measure(middle)
        if found >= target:
            high, recall = middle, found
        else:
            low = middle
    index.effort = high
    return recall
