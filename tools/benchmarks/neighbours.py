"""All-pairs neighbours at one recall: ours, the paper's 8-bit codes, ScaNN, exact; pairs a second.

    python tools/benchmarks/passage_vectors.py --encoder FOLDER --static --out V.npy CORPUS ...
    python tools/benchmarks/neighbours.py V.npy --rows 200000 [--corpora CORPUS ...]

Each is tuned to the same recall on the same sample (lists searched: doubled, then bisected; the
tuning is not counted for any), builds its index in one go, and then answers for documents in
slices, in turn with the others, so that other work on the machine meets all alike. The slow ones
answer fewer documents (said in the table), and their time is scaled to all. Seconds are wall time;
CPU seconds stand beside them, since the machine may be shared. ScaNN is used where it can be
imported (`pip install scann`), with its tree of √N leaves, anisotropic 4-bit codes and re-ranking.
"""

import argparse
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_synth.corpus import read_documents
from megatron_synth.pairing import PairConfig
from megatron_synth.pairing.duplicates import shingle_test
from megatron_synth.pairing.index import ExactIndex, NeighbourIndex, build_index
from megatron_synth.pairing.neighbours import QUERIES, threads
from megatron_synth.pairing.recall import RecallSample, tune
from megatron_synth.pairing.vectors import Rows

_SHARE = {"ivf_pq4fs": 1, "scann": 1, "ivf_sq8": 4, "flat": 16}
"""One of so many slices is answered."""


@dataclass
class Clock:
    """Wall and CPU seconds of what ran inside it."""

    wall: float = 0.0
    cpu: float = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._start[0]
        self.cpu += time.process_time() - self._start[1]


class Scann(NeighbourIndex):
    """ScaNN under our interface, so that it is tuned and measured as ours is."""

    effort_name = "leaves"
    reranks = True

    def __init__(self, rows: Rows, k: int, arguments: argparse.Namespace) -> None:
        import scann

        super().__init__("scann", len(rows))
        vectors = rows.take(np.arange(len(rows)))
        self._leaves = round(len(rows) ** 0.5)
        builder = scann.scann_ops_pybind.builder(vectors, k, "dot_product")
        builder.set_n_training_threads(arguments.threads)
        trained = min(len(rows), arguments.scann_training * self._leaves)
        tree = builder.tree(self._leaves, 32, training_sample_size=trained)
        codes = tree.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(arguments.reorder)
        self._searcher = codes.build()
        self._searcher.set_num_threads(arguments.threads)
        self._reorder = arguments.reorder
        self.k_factor = 1.0

    @property
    def max_effort(self) -> int:
        """All leaves."""
        return self._leaves

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[Any, Any]:
        """Re-ranks `k_factor` times what it was made with."""
        place, similarity = self._searcher.search_batched_parallel(
            queries, k, round(self._reorder * self.k_factor), self.effort
        )
        return similarity, place.astype(np.int64)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--neighbours", type=int, default=200)
    parser.add_argument("--recall", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slices", type=int, default=0, help="answered; 0: all")
    parser.add_argument("--reorder", type=int, default=600, help="ScaNN's candidates re-ranked")
    parser.add_argument(
        "--scann-training", type=int, default=64, help="rows a leaf that ScaNN trains on; ours: 64"
    )
    parser.add_argument("--kinds", nargs="+", default=list(_SHARE))
    parser.add_argument("--corpora", nargs="*", type=Path, default=[])
    arguments = parser.parse_args()
    vectors = np.load(arguments.vectors, mmap_mode="r")[: arguments.rows]
    rows = Rows.of(vectors)
    size = vectors.nbytes / 1e6
    print(f"{len(rows):,} rows x {rows.dimension} {vectors.dtype}, {size:.0f} MB", flush=True)
    config = PairConfig(
        neighbours=arguments.neighbours,
        threads=arguments.threads,
        recall_target=arguments.recall,
    )
    with threads(config):
        _compare(config, rows, arguments)
    if arguments.corpora:
        _near_duplicates(arguments.corpora)


def _compare(config: PairConfig, rows: Rows, arguments: argparse.Namespace) -> None:
    k = config.neighbours + 1
    makers: dict[str, Callable[[], NeighbourIndex]] = {
        kind: lambda kind=kind: build_index(config.model_copy(update={"index": kind}), rows)  # type: ignore[misc]
        for kind in ("ivf_pq4fs", "ivf_sq8", "flat")
    }
    makers["scann"] = lambda: Scann(rows, k, arguments)
    indices: dict[str, NeighbourIndex] = {}
    builds, searches = {}, {}
    recalls: dict[str, float] = {}
    sample = RecallSample.draw(config, rows)
    for kind in arguments.kinds:
        before = _anonymous_mb()
        builds[kind], searches[kind] = Clock(), Clock()
        try:
            with builds[kind]:
                indices[kind] = makers[kind]()
        except ImportError:
            print(f"{kind}: not installed", flush=True)
            continue
        held = _anonymous_mb() - before
        recalls[kind] = tune(config, indices[kind], rows) or 1.0
        exact = isinstance(indices[kind], ExactIndex)
        checked = 1.0 if exact else sample.recall(indices[kind], config.neighbours)
        print(
            f"{kind}: built in {builds[kind].wall:.1f} s ({builds[kind].cpu:.1f} CPU s), holds "
            f"{held:.0f} MB, recall {checked:.4f}, {indices[kind].settings}",
            flush=True,
        )
    answered = dict.fromkeys(indices, 0)
    slices = range(0, len(rows), QUERIES)
    for number, start in enumerate(slices if not arguments.slices else slices[: arguments.slices]):
        for kind, index in indices.items():
            if number % _SHARE[kind]:
                continue
            asked = index.order[start : start + QUERIES]
            with searches[kind]:
                index.search(rows.take(asked), k)
            answered[kind] += len(asked)
    ours = arguments.kinds[0]
    totals = {}
    for kind in indices:
        scale = len(rows) / answered[kind]
        wall = builds[kind].wall + searches[kind].wall * scale
        cpu = builds[kind].cpu + searches[kind].cpu * scale
        totals[kind] = wall, cpu
        print(
            f"{kind}: all pairs {wall:.0f} s ({cpu:.0f} CPU s), build included; "
            f"{answered[kind] / searches[kind].wall:,.0f} queries/s, "
            f"{arguments.threads * answered[kind] / searches[kind].cpu:,.0f} of CPU time; "
            f"{answered[kind]:,} answered; "
            f"{ours} takes {totals[ours][0] / wall:.2f} of its time ({totals[ours][1] / cpu:.2f} "
            "of CPU time)",
            flush=True,
        )


def _near_duplicates(corpora: list[Path]) -> None:
    """Pairs of documents compared by their shingles: half at random, half next to each other."""
    texts = [document.text for corpus in corpora for document in read_documents(corpus)]
    generator = np.random.default_rng(0)
    first = generator.integers(len(texts), size=2_000_000)
    second = generator.integers(len(texts), size=2_000_000)
    second[::2] = (first[::2] + 1) % len(texts)
    with (clock := Clock()):
        shares = shingle_test(texts)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    print(f"shingles of {len(texts):,} texts, {megabytes:.0f} MB: {clock.wall:.1f} s")
    with (clock := Clock()):
        found = int(shares(first, second).sum())
    print(
        f"{len(first):,} pairs in {clock.wall:.2f} s: {len(first) / clock.wall:,.0f} pairs/s, "
        f"{found:,} near-duplicates"
    )


def _anonymous_mb() -> float:
    """Memory of this process that is no file."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1e3  # type: ignore[index]


if __name__ == "__main__":
    main()
