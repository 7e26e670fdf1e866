"""Clusters of documents: what may be taken as drawn independently.

Validation is held out by group (such as a package), so documents of one group come together and
resemble each other. Uncertainty is over groups; a document without a group is a cluster by itself.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_synth.config import DataError

Groups = Sequence[str | None]
"""The group of each document, None for a document without one."""


def cluster_numbers(documents: int, groups: Groups | None) -> NDArray[np.int64]:
    """int64 [documents], from 0, in the order of each cluster's first document.

    Raises:
        DataError: Another number of groups than of documents.
    """
    if groups is None:
        return np.arange(documents)
    if len(groups) != documents:
        raise DataError(f"{len(groups)} groups for {documents} documents")
    known: dict[str | int, int] = {}
    keys = (index if group is None else group for index, group in enumerate(groups))
    numbers = (known.setdefault(key, len(known)) for key in keys)
    return np.fromiter(numbers, dtype=np.int64, count=documents)


def cluster_count(documents: int, groups: Groups | None) -> int:
    """How many clusters `documents` documents are."""
    return int(cluster_numbers(documents, groups).max(initial=-1)) + 1


def cluster_sums(values: NDArray[Any], groups: Groups | None) -> NDArray[np.float64]:
    """Sums of each row over each cluster: [rows, documents] to float64 [rows, clusters]."""
    rows = np.ascontiguousarray(values, np.float64)
    if groups is None:
        return rows
    numbers = cluster_numbers(rows.shape[1], groups)
    return np.stack([np.bincount(numbers, weights=row) for row in rows])
