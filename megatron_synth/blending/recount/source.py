"""Which documents a corpus of a plan means, read by the audit's own means.

A second reading of `SourceConfig`'s promises (see its docstrings), on purpose without the code
that the streams select by.
"""

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_synth.blending.recount.keys import text_keys
from megatron_synth.blending.sources import SelectConfig
from megatron_synth.config import DataError

Int64s = NDArray[np.int64]


def selected(select: SelectConfig, base: Path, sizes: Int64s) -> NDArray[np.bool_]:
    """bool[documents]: which of them the selection means.

    Args:
        select: The selection.
        base: Path of the corpus, without `.bin`; its side table lies beside it.
        sizes: Tokens of each document, int64[documents].

    Raises:
        DataError: The scores are not one for each document.
    """
    scores = _values(select.file, select.column)
    if select.file.suffix == ".parquet":
        scores = _by_id(scores, select.file, base)
    if len(scores) != len(sizes):
        raise DataError(
            f"{len(scores):,} scores for {len(sizes):,} documents",
            where=select.file,
            fix="Make the scores from this corpus.",
        )
    if select.above is not None:
        return np.array(scores > select.above)
    if select.top is None:
        return np.array(scores, dtype=bool)
    # Best first; among equals the first document: by falling score, then by rising number.
    best = np.lexsort((np.arange(len(scores)), -scores.astype(np.float64)))
    top = Decimal(repr(select.top))
    if select.of == "documents":
        best = best[: int(top * len(sizes))]
    else:
        allowed = int(top * int(sizes.sum()))
        best = best[np.cumsum(sizes[best]) <= allowed]
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[best] = True
    return chosen


def places(order: Path, meant: NDArray[np.bool_]) -> Int64s:
    """int64[documents]: which place each document that is meant has in a fixed order; else -1.

    Args:
        order: The file of the order.
        meant: Documents that are meant and not empty: only these have places.

    Raises:
        DataError: Not an order of this corpus.
    """
    numbers = _values(order, "document")
    inside = len(numbers) == len(meant) and bool(((numbers >= 0) & (numbers < len(meant))).all())
    named = np.zeros(len(meant), dtype=bool)
    named[numbers if inside else []] = True
    if not (inside and named.all()):
        raise DataError(
            f"is not an order of the corpus's {len(meant):,} documents",
            where=order,
            fix="Make the order from this corpus.",
        )
    result = np.full(len(meant), -1, dtype=np.int64)
    kept = numbers[meant[numbers]]
    result[kept] = np.arange(len(kept))
    return result


def _values(path: Path, column: str) -> NDArray[Any]:
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        return np.asarray(pq.read_table(path, columns=[column])[column].to_numpy())
    return np.asarray(np.load(path, allow_pickle=False))


def _by_id(scores: NDArray[Any], path: Path, base: Path) -> NDArray[Any]:
    """Scores in the corpus's order: both tables by the hash of their ids."""
    import pyarrow.parquet as pq

    scored, ids = (
        np.concatenate(
            [np.empty(0, np.uint64)]
            + [text_keys(part) for part in pq.read_table(file, columns=["id"])["id"].chunks]
        )
        for file in (path, Path(f"{base}.provenance.parquet"))
    )
    order = np.argsort(scored)
    at = np.minimum(np.searchsorted(scored[order], ids), len(scored) - 1)
    if not np.array_equal(scored[order][at], ids):
        raise DataError(
            "a document of the corpus has no score", where=path, fix="Score every document."
        )
    matched: NDArray[Any] = scores[order[at]]
    return matched
