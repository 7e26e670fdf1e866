"""Nearest neighbours by inner product, with FAISS."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_synth.config import DataError
from megatron_synth.pairing.config import PairConfig
from megatron_synth.runs import Progress

EXACT_LIMIT = 50_000
_QUERY_BLOCK = 4096
_TRAIN_PER_LIST = 64


@dataclass(frozen=True)
class Candidates:
    """Neighbour relations found, most similar first, self pairs removed.

    Attributes:
        d1: int64 [m], the document whose neighbours were asked for.
        d2: int64 [m], a neighbour of it.
        similarity: float32 [m], cosine, not rising.
        self_pairs: How many self pairs were removed.
        index: Which index answered.
    """

    d1: NDArray[np.int64]
    d2: NDArray[np.int64]
    similarity: NDArray[np.float32]
    self_pairs: int
    index: str


def load_vectors(path: Path) -> NDArray[np.float32]:
    """Read unit vectors as float32 [n, d].

    Raises:
        DataError: No such file, not a matrix of floats, fewer than two rows, or rows whose norm is
            neither 1 nor 0 (0 marks a document without a direction: it has no neighbours).
    """
    if not path.is_file():
        raise DataError("no such embeddings file", where=path)
    try:
        vectors = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"no numpy array: {error}", where=path) from error
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise DataError(
            f"must be a matrix of floats [documents, dimension], is {vectors.dtype} "
            f"{vectors.shape}",
            where=path,
        )
    if len(vectors) < 2:
        raise DataError(f"{len(vectors)} documents cannot form a pair", where=path)
    result: NDArray[np.float32] = np.ascontiguousarray(vectors, np.float32)
    norms = np.linalg.norm(result, axis=1)
    wrong = ~((np.abs(norms - 1) < 0.02) | (norms == 0))
    if wrong.any():
        raise DataError(
            f"{int(wrong.sum())} of {len(norms)} rows do not have unit norm "
            f"(row {int(wrong.argmax())}: {norms[wrong.argmax()]:.4f})",
            where=path,
            fix="Divide each row by its norm: similarity is the inner product.",
        )
    return result


def find_neighbours(
    config: PairConfig, vectors: NDArray[np.float32], progress: Progress
) -> Candidates:
    """The nearest neighbours of every document.

    Args:
        config: Number of neighbours, index, threads.
        vectors: float32 [n, d], unit rows; rows of zeros are left out on both sides.
        progress: Counts queries.
    """
    import faiss

    present = np.flatnonzero(np.any(vectors, axis=1))
    kind = config.index
    if kind == "auto":
        kind = "flat" if len(present) <= EXACT_LIMIT else "ivf_flat"
    wanted = min(config.neighbours + 1, len(present))  # one more: a document finds itself
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(config.threads or _threads())
    try:
        progress.phase("building the index")
        rows = vectors[present]
        index = _build(faiss, kind, rows, config)
        progress.phase("searching neighbours", total=len(present), unit="documents")
        pieces = []
        for start in range(0, len(present), _QUERY_BLOCK):
            similarity, position = index.search(rows[start : start + _QUERY_BLOCK], wanted)
            pieces.append(_as_pairs(start, similarity, position, config.neighbours))
            progress.update(min(start + _QUERY_BLOCK, len(present)))
    finally:
        faiss.omp_set_num_threads(before)
    d1, d2, found = (np.concatenate([p[i] for p in pieces]) for i in range(3))
    # Ties are broken by document number, so that the order never depends on threads.
    order = np.lexsort((d2, d1, -found))
    return Candidates(
        present[d1[order]],
        present[d2[order]],
        found[order].astype(np.float32),
        sum(p[3] for p in pieces),
        kind,
    )


def _build(faiss: Any, kind: str, rows: NDArray[np.float32], config: PairConfig) -> Any:
    dimension = rows.shape[1]
    if kind == "flat":
        index = faiss.IndexFlatIP(dimension)
    else:
        lists = max(1, round(len(rows) ** 0.5))
        coding = {"ivf_flat": "Flat", "ivf_sq8": "SQ8"}[kind]
        index = faiss.index_factory(dimension, f"IVF{lists},{coding}", faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = config.seed
        index.nprobe = min(config.nprobe, lists)
        size = min(len(rows), lists * _TRAIN_PER_LIST)
        chosen = np.random.default_rng(config.seed).choice(len(rows), size, replace=False)
        index.train(rows[np.sort(chosen)])
    index.add(rows)
    return index


def _as_pairs(
    start: int, similarity: NDArray[Any], position: NDArray[Any], neighbours: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], int]:
    """Flatten one block of answers; drop itself, empty slots and what is over `neighbours`."""
    query = np.arange(start, start + len(position))[:, None]
    itself = position == query
    kept = (position >= 0) & ~itself
    kept &= np.cumsum(kept, axis=1) <= neighbours
    row, _ = np.nonzero(kept)
    return row + start, position[kept], similarity[kept], int(itself.sum())


def _threads() -> int:
    declared = os.environ.get("OMP_NUM_THREADS", "")
    return int(declared) if declared.isdigit() and int(declared) else len(os.sched_getaffinity(0))
