"""Pairs held out of synthesizer tuning, with both of their documents.

A validation pair has a d1 of its own, and neither its d1 nor its d2 occurs in any training pair, on
either side: what the loss on it says is about documents that the synthesizer was not tuned on. (The
baseline that it starts from has read them, as it has read all of D.)
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_synth.blending.pair_documents import read_table
from megatron_synth.config import DataError
from megatron_synth.runs import atomic_write, get_logger

TRAINING = "training.parquet"
VALIDATION = "validation.parquet"
MOST_LOST = 0.1
"""Share of the training pairs that may go because of held-out documents."""

_log = get_logger(__name__)


def split_pairs(pairs_file: Path, out: Path, *, validation_pairs: int, seed: int) -> dict[str, Any]:
    """Write `training.parquet` and `validation.parquet` into `out`, rows and columns as they were.

    The validation pairs are drawn: first documents in an order of the seed, one pair of each.
    Where their documents would take more than a tenth of the pairs away from training, there are
    fewer of them.

    Args:
        pairs_file: Parquet with integer columns `d1` and `d2`.
        out: Folder.
        validation_pairs: Most pairs to hold out; 0 holds none out.
        seed: Of the draw.

    Returns:
        `training_pairs`, `validation_pairs`, and `left_out`: pairs in neither file, since they
        share a document with a validation pair.

    Raises:
        DataError: No such table, or no pairs in it.
    """
    import pyarrow.parquet as pq

    table = read_table(pairs_file, None)
    if not table.num_rows:
        raise DataError("the pairs file is empty", where=pairs_file, fix="Lower the threshold.")
    d1, d2 = (table[name].to_numpy() for name in ("d1", "d2"))
    chosen = _draw(d1, seed)[:validation_pairs]
    rank = _ranks(d1, d2, chosen)
    kept = _affordable(rank, len(chosen))
    if kept < validation_pairs:
        _log.warning(
            "%d pairs are held out where %d were asked for: there are %d pairs in all, and the "
            "documents of more would take over %d %% of them from training",
            *(kept, validation_pairs, len(d1), round(100 * MOST_LOST)),
        )
    validation = np.sort(chosen[:kept])
    training = np.flatnonzero(rank >= kept)
    for name, rows in ((TRAINING, training), (VALIDATION, validation)):
        with atomic_write(out / name, "wb") as handle:
            pq.write_table(table.take(rows), handle, compression="zstd")
    counts = {
        "training_pairs": len(training),
        "validation_pairs": kept,
        "left_out": len(d1) - len(training) - kept,
    }
    _log.info("pairs: %s", counts)
    return counts


def _draw(d1: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """One row of each d1, in a drawn order, int64[distinct d1]."""
    order = np.random.default_rng(seed).permutation(len(d1))
    _, first = np.unique(d1[order], return_index=True)
    drawn: NDArray[np.int64] = order[np.sort(first)]
    return drawn


def _ranks(
    d1: NDArray[np.int64], d2: NDArray[np.int64], chosen: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each row, the first of the chosen rows that shares a document with it, int64[rows]."""
    documents, places = np.unique(np.concatenate([d1, d2]), return_inverse=True)
    first = np.full(len(documents), len(chosen), np.int64)
    for side in (places[: len(d1)], places[len(d1) :]):
        np.minimum.at(first, side[chosen], np.arange(len(chosen)))
    ranks: NDArray[np.int64] = np.minimum(first[places[: len(d1)]], first[places[len(d1) :]])
    return ranks


def _affordable(rank: NDArray[np.int64], asked: int) -> int:
    """The most chosen rows that may be held out, at most `asked`."""
    touched = np.cumsum(np.bincount(rank, minlength=asked + 1)[:asked])
    lost = touched - np.arange(1, asked + 1)  # beyond the held-out rows themselves
    return int(np.count_nonzero(np.maximum.accumulate(lost) <= MOST_LOST * len(rank)))
