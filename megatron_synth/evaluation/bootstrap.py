"""Paired bootstrap over clusters of documents: how sure is a difference between two models?"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_synth.config import ConfigError, DataError
from megatron_synth.evaluation.clusters import Groups, cluster_sums
from megatron_synth.evaluation.losses import check_losses

_CELLS = 4_000_000
"""Counts drawn at once: bounds the memory to about 64 MB, whatever the number of clusters."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval.

    Attributes:
        estimate: The figure on the documents as they are.
        low: Lower end.
        high: Upper end.
        confidence: Share of resamples between the ends, 0.95 by default.
    """

    estimate: float
    low: float
    high: float
    confidence: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside: the sign is then settled at this confidence."""
        return self.low > 0 or self.high < 0


def resampled_sums(
    values: NDArray[Any],
    *,
    seed: int = 0,
    resamples: int = 10_000,
    groups: Groups | None = None,
) -> NDArray[np.float64]:
    """Sums of each row of `values` over clusters of documents drawn again with replacement.

    All rows see the same draws, which is what makes comparisons of rows paired. A cluster is
    drawn whole (cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their Application,
    section 3.8): drawing documents of one group singly would take what they share for certain.

    Args:
        values: [rows, documents].
        seed: Draws depend on the seed, the number of clusters and of resamples alone.
        resamples: How many times as many clusters as there are get drawn.
        groups: [documents]; without it, every document is a cluster.

    Returns:
        float64 [resamples, rows].

    Raises:
        ConfigError: Fewer than 100 resamples: no interval could be read off them.
        DataError: Another number of groups than of documents, or all documents are one cluster:
            drawn again, it never varies.
    """
    if resamples < 100:
        raise ConfigError(f"{resamples} resamples are too few for an interval; take 1,000 or more")
    rows = cluster_sums(values, groups)
    clusters = rows.shape[1]
    if clusters == 1:
        raise DataError(
            "all documents are one cluster (one group, or one document): no interval can be given",
            fix="Hold out documents of several groups.",
        )
    generator = np.random.default_rng(seed)
    share = np.full(clusters, 1 / clusters)
    result = np.empty((resamples, rows.shape[0]))
    step = max(1, _CELLS // clusters)
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        counts = generator.multinomial(clusters, share, size=stop - start)
        result[start:stop] = counts.astype(np.float64) @ rows.T
    return result


def percentile_interval(
    estimate: float, samples: NDArray[np.float64], confidence: float = 0.95
) -> Interval:
    """The middle `confidence` of `samples`, around `estimate`."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Interval(float(estimate), float(low), float(high), confidence)


def paired_bootstrap(
    a: NDArray[Any],
    b: NDArray[Any],
    tokens: NDArray[Any],
    seed: int = 0,
    resamples: int = 10_000,
    confidence: float = 0.95,
    *,
    groups: Groups | None = None,
) -> Interval:
    """Interval of the difference a − b of two mean token losses on the same documents.

    Clusters of documents are drawn with replacement, both models see the same draw, and each
    resample's mean is weighted by tokens: Σ(a − b)/Σ tokens (Efron and Tibshirani, An Introduction
    to the Bootstrap, ch. 13: percentile interval). It covers the choice of documents and nothing
    else: not the seed of training. With fewer than about 30 clusters it is somewhat too narrow.

    Args:
        a: [n] sums of -log p by document, nats.
        b: [n] the same for the other model; below zero in the result means that `a` is better.
        tokens: [n] predicted tokens by document.
        seed: Seed of the draws.
        resamples: Number of draws.
        confidence: Share of resamples inside the interval.
        groups: [n] the group of each document, drawn whole; None for no group.

    Raises:
        DataError: Vectors of different length, no document, losses that are not finite, or all
            documents in one cluster.
        ConfigError: Too few resamples.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    count = np.asarray(tokens, np.float64)
    check_losses(first, count)
    check_losses(second, count)
    difference = first - second
    rows = np.stack([difference, count])
    sums = resampled_sums(rows, seed=seed, resamples=resamples, groups=groups)
    return percentile_interval(difference.sum() / count.sum(), sums[:, 0] / sums[:, 1], confidence)
