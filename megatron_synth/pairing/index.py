"""Indices over unit vectors: which rows may be nearest to a query, for how much memory and time.

Every index takes float16 rows out of a memory map, a block at a time, and holds at most one more
copy of them: `flat` none; `ivf_flat`, `hnsw` and `ivf_pq4fs` one (float16, exact where the input is
float16); `ivf_sq8` half of one. What the inverted lists add to that is small: the 4-bit codes of
`ivf_pq4fs` (one code for two dimensions, of the residual to the list's centre; Andre et al. 2015,
Fast Scan; Douze et al. 2024, The Faiss library) are an eighth of it.

Lists are numbered so that neighbours lie side by side, and queries that are documents themselves
are asked list by list (`order`): each list is then in the cache for all the queries that need it.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from megatron_synth.pairing.config import PairConfig
from megatron_synth.pairing.vectors import BLOCK, Rows

EXACT_LIMIT = 50_000
FEWEST_FOR_LISTS = 1000
"""Codes and centres of fewer rows cannot be trained, and exact search takes milliseconds."""
_TRAIN_PER_LIST = 64
_HNSW_LINKS = 32

Found = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Similarity float32 [q, k], falling, and place int64 [q, k]; -1 where there is no answer."""


class NeighbourIndex(ABC):
    """Answers which rows are nearest to a query.

    Attributes:
        kind: Name of the index, as `PairConfig.index` has it.
        order: int64 [rows], the order in which the rows are best asked for.
        effort: What is spent on a query: lists searched (inverted lists), or candidates kept
            (`hnsw`). More finds more.
        k_factor: Candidates for each neighbour wanted, before exact re-ranking (`ivf_pq4fs`).
    """

    effort_name: ClassVar[str] = ""
    reranks: ClassVar[bool] = False

    def __init__(self, kind: str, rows: int) -> None:
        self.kind = kind
        self.order: NDArray[np.int64] = np.arange(rows)
        self.effort = 0
        self.k_factor = 1.0

    @property
    def exact(self) -> bool:
        """Whether it finds every neighbour, whatever the effort."""
        return not self.effort_name

    @property
    def max_effort(self) -> int:
        """Beyond it nothing more is found."""
        return 0

    @abstractmethod
    def search(self, queries: NDArray[np.float32], k: int) -> Found:
        """The nearest rows of float32 [q, d]: see `Found`."""

    @property
    def settings(self) -> dict[str, float]:
        """What it is set to, for the report."""
        found: dict[str, float] = {self.effort_name: self.effort} if self.effort_name else {}
        return {**found, "k_factor": self.k_factor} if self.reranks else found


class ExactIndex(NeighbourIndex):
    """Compares each query with every row, a block of rows at a time."""

    def __init__(self, rows: Rows) -> None:
        super().__init__("flat", len(rows))
        self._rows = rows

    def search(self, queries: NDArray[np.float32], k: int) -> Found:
        """See `NeighbourIndex.search`."""
        import faiss

        heap = faiss.ResultHeap(len(queries), k, keep_max=True)
        for start, block in self._rows.blocks():
            similarity, place = _knn(faiss, queries, block, min(k, len(block)))
            heap.add_result(similarity, place + start)
        heap.finalize()
        return heap.D, heap.I


class ListIndex(NeighbourIndex):
    """Inverted lists: rows by their nearest centre; a query looks into the `effort` nearest."""

    effort_name = "nprobe"

    def __init__(self, config: PairConfig, kind: str, rows: Rows) -> None:
        import faiss

        super().__init__(kind, len(rows))
        self._lists: int = max(1, round(len(rows) ** 0.5))
        self._index = _train(faiss, kind, self._lists, rows, config.seed)
        for _, block in rows.blocks():
            self._index.add(block)
        self._by_list(faiss)
        self._searched = self._refined(faiss, rows)
        self._gpu = _to_gpu(faiss, kind, self._index)
        self.effort = min(config.nprobe, self._lists)

    @property
    def max_effort(self) -> int:
        """All lists."""
        return self._lists

    def search(self, queries: NDArray[np.float32], k: int) -> Found:
        """See `NeighbourIndex.search`."""
        index = self._gpu or self._index
        index.nprobe = self.effort
        similarity, place = (self._gpu or self._searched).search(queries, k)
        return similarity, np.where(place < 0, -1, self.order[place])

    def _by_list(self, faiss: Any) -> None:
        """Number the rows as they lie in the lists."""
        lists, start = self._index.invlists, 0
        for number in range(self._lists):
            size = lists.list_size(number)
            if size:
                ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
                self.order[start : start + size] = ids
                ids[:] = np.arange(start, start + size)
                start += size

    def _refined(self, faiss: Any, rows: Rows) -> Any:
        """What is searched: the lists themselves."""
        return self._index


class RerankedIndex(ListIndex):
    """4-bit codes choose `k_factor` candidates a neighbour; their float16 rows decide."""

    reranks = True

    def __init__(self, config: PairConfig, kind: str, rows: Rows) -> None:
        super().__init__(config, kind, rows)
        self.k_factor = config.k_factor

    def search(self, queries: NDArray[np.float32], k: int) -> Found:
        """See `NeighbourIndex.search`."""
        self._searched.k_factor = self.k_factor
        return super().search(queries, k)

    def _refined(self, faiss: Any, rows: Rows) -> Any:
        half = faiss.ScalarQuantizer.QT_fp16
        self._exact = faiss.IndexScalarQuantizer(rows.dimension, half, faiss.METRIC_INNER_PRODUCT)
        self._exact.is_trained = True  # float16 has nothing to learn
        for start in range(0, len(rows), BLOCK):
            self._exact.add(rows.take(self.order[start : start + BLOCK]))
        return faiss.IndexRefine(self._index, self._exact)


class GraphIndex(NeighbourIndex):
    """HNSW over float16 rows (Malkov and Yashunin 2016): `effort` candidates kept for a query."""

    effort_name = "ef_search"

    def __init__(self, config: PairConfig, rows: Rows) -> None:
        import faiss

        super().__init__("hnsw", len(rows))
        self._index: Any = faiss.index_factory(
            rows.dimension, f"HNSW{_HNSW_LINKS},SQfp16", faiss.METRIC_INNER_PRODUCT
        )
        # float16 has nothing to learn; the store says so itself, the graph around it does not.
        self._index.train(np.zeros((1, rows.dimension), np.float32))
        for _, block in rows.blocks():
            self._index.add(block)
        self.effort = max(config.neighbours + 1, config.nprobe)

    @property
    def max_effort(self) -> int:
        """All rows."""
        return len(self.order)

    def search(self, queries: NDArray[np.float32], k: int) -> Found:
        """See `NeighbourIndex.search`."""
        self._index.hnsw.efSearch = max(self.effort, k)
        similarity, place = self._index.search(queries, k)
        return similarity, place


def build_index(config: PairConfig, rows: Rows) -> NeighbourIndex:
    """Build the index that `config.index` names.

    Args:
        config: Kind, seed, and the effort to begin with.
        rows: What will be found.
    """
    kind = kind_of(config, len(rows))
    if kind == "flat":
        return ExactIndex(rows)
    if kind == "hnsw":
        return GraphIndex(config, rows)
    return (RerankedIndex if kind == "ivf_pq4fs" else ListIndex)(config, kind, rows)


def kind_of(config: PairConfig, rows: int) -> str:
    """Which index so many rows get."""
    import faiss

    if rows < FEWEST_FOR_LISTS or (config.index == "auto" and rows <= EXACT_LIMIT):
        return "flat"
    if config.index == "auto":
        return "ivf_flat" if faiss.get_num_gpus() else "ivf_pq4fs"
    return config.index


def _train(faiss: Any, kind: str, lists: int, rows: Rows, seed: int) -> Any:
    pairs = rows.dimension // 2 if rows.dimension % 2 == 0 else rows.dimension
    coding = {"ivf_flat": "SQfp16", "ivf_sq8": "SQ8", "ivf_pq4fs": f"PQ{pairs}x4fsr"}[kind]
    name = f"IVF{lists},{coding}"
    index = faiss.index_factory(rows.dimension, name, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = seed
    if kind == "ivf_flat":
        index.by_residual = False  # the float16 values themselves, not rounded a second time
    if kind == "ivf_pq4fs":
        index.pq.cp.seed = seed
    size = min(len(rows), lists * _TRAIN_PER_LIST)
    chosen = np.random.default_rng(seed).choice(len(rows), size, replace=False)
    vectors = rows.take(np.sort(chosen))
    index.train_q1(size, faiss.swig_ptr(vectors), False, faiss.METRIC_INNER_PRODUCT)
    # What is left are many tiny clusterings, on which threads wait for each other: with two, five
    # times the CPU time of one.
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index.train(vectors)
    finally:
        faiss.omp_set_num_threads(threads)
    return index


def _knn(faiss: Any, queries: NDArray[np.float32], rows: NDArray[np.float32], k: int) -> Found:
    """Exact search, on a GPU where faiss has one."""
    metric = faiss.METRIC_INNER_PRODUCT
    if faiss.get_num_gpus():
        found: Found = faiss.knn_gpu(faiss.StandardGpuResources(), queries, rows, k, metric=metric)
        return found
    found = faiss.knn(queries, rows, k, metric=metric)
    return found


def _to_gpu(faiss: Any, kind: str, index: Any) -> Any:
    """The same lists on all GPUs, each a part; None without one, and for codes it cannot search."""
    if kind == "ivf_pq4fs" or not faiss.get_num_gpus():
        return None
    options = faiss.GpuMultipleClonerOptions()
    options.shard = True
    return faiss.index_cpu_to_all_gpus(index, co=options)
