"""Nearest neighbours of every document by inner product, with FAISS."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_synth.pairing.config import PairConfig
from megatron_synth.pairing.index import NeighbourIndex, build_index
from megatron_synth.pairing.recall import tune
from megatron_synth.pairing.vectors import Rows, Vectors
from megatron_synth.runs import Progress

QUERIES = 4096
"""Documents asked for at a time: inverted lists are read once for all that need them."""

Relations = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""d1 int64 [m], d2 int64 [m], similarity float32 [m]."""


@dataclass(frozen=True)
class Candidates:
    """Neighbour relations found, most similar first, self pairs removed.

    Attributes:
        d1: int64 [m], the document whose neighbours were asked for.
        d2: int64 [m], a neighbour of it.
        similarity: float32 [m], cosine, not rising.
        self_pairs: How many self pairs were removed.
        index: Which index answered.
        search: How it was set, and its recall: `nprobe`, `k_factor`, `recall` and the like.
    """

    d1: NDArray[np.int64]
    d2: NDArray[np.int64]
    similarity: NDArray[np.float32]
    self_pairs: int
    index: str
    search: dict[str, Any] = field(default_factory=dict)


def find_neighbours(config: PairConfig, vectors: Vectors, progress: Progress) -> Candidates:
    """The nearest neighbours of every document.

    Args:
        config: Number of neighbours, index, recall, threads.
        vectors: float16 or float32 [n, d], unit rows; rows of zeros are left out on both sides.
        progress: Counts queries.
    """
    rows = Rows.of(vectors)
    with threads(config):
        index, search = tuned_index(config, rows, progress)
        progress.phase("searching neighbours", total=len(rows), unit="documents")
        pieces, selves = [], 0
        for asked, place, similarity in search_all(index, rows, config.neighbours + 1):
            *piece, itself = as_relations(
                rows.documents(asked), rows.documents(place), place >= 0, similarity, config
            )
            pieces.append(piece)
            selves += itself
            progress.update(progress.state.done + len(asked))
    d1, d2, found = (np.concatenate([p[i] for p in pieces]) for i in range(3))
    # Ties are broken by document number, so that the order never depends on threads.
    order = np.lexsort((d2, d1, -found))
    return Candidates(d1[order], d2[order], found[order], selves, index.kind, search)


def tuned_index(
    config: PairConfig, rows: Rows, progress: Progress
) -> tuple[NeighbourIndex, dict[str, Any]]:
    """Build an index and tune it; also returns what `Candidates.search` holds."""
    progress.phase("building the index")
    index = build_index(config, rows)
    progress.phase("measuring recall")
    recall = tune(config, index, rows)
    if recall is None:
        return index, {}
    return index, {**index.settings, "recall": round(recall, 4), "target": config.recall_target}


def search_all(
    index: NeighbourIndex, rows: Rows, k: int, order: NDArray[np.int64] | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
    """Ask for every row, in the order that is best for the index.

    Args:
        index: What is searched.
        rows: Who asks.
        k: Answers for each, itself included.
        order: int64 [rows], in which order; by default the index's own (rows are what it holds).

    Yields:
        asked int64 [q] (places in `rows`), place int64 [q, k] (places in the index; -1 for none),
        similarity float32 [q, k], falling.
    """
    order = index.order if order is None else order
    k = min(k, len(index.order))
    for start in range(0, len(order), QUERIES):
        asked = order[start : start + QUERIES]
        similarity, place = index.search(rows.take(asked), k)
        yield asked, place, similarity


def as_relations(
    asked: NDArray[np.int64],
    answer: NDArray[np.int64],
    given: NDArray[np.bool_],
    similarity: NDArray[np.float32],
    config: PairConfig,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], int]:
    """Flatten a block of answers: without the document itself, empty slots, and one too many.

    Args:
        asked: int64 [q], documents.
        answer: int64 [q, k], documents.
        given: bool [q, k], whether there is an answer.
        similarity: float32 [q, k], falling.
        config: `neighbours` bounds what each document keeps.

    Returns:
        d1, d2, similarity (see `Relations`) and how many self pairs were left out.
    """
    itself = given & (answer == asked[:, None])
    kept = given & ~itself
    kept &= np.cumsum(kept, axis=1) <= config.neighbours
    row, _ = np.nonzero(kept)
    return asked[row], answer[kept], similarity[kept].astype(np.float32), int(itself.sum())


@contextmanager
def threads(config: PairConfig) -> Iterator[None]:
    """FAISS with as many threads as the config says."""
    import faiss

    before = faiss.omp_get_max_threads()
    declared = os.environ.get("OMP_NUM_THREADS", "")
    usual = int(declared) if declared.isdigit() and int(declared) else cores()
    faiss.omp_set_num_threads(config.threads or usual)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
