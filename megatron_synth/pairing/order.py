"""An order of documents in which neighbours follow each other (In-Context Pretraining, ICPT).

Shi et al. 2023, section 2.2 and algorithm 1: a path through the graph of nearest neighbours that
visits every document once. It starts at a document of least degree, goes on to the most similar
neighbour not yet visited, and where there is none, to an unvisited document of least degree:
those have the fewest ways in and would be left over. The graph is undirected: two documents are
joined if either is among the other's neighbours.

Cost: each relation is looked at once and each list of neighbours sorted: near-linear. Memory: 40
bytes a relation at most. Ties go to the lower number, so the order depends on the graph alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_synth.pairing.neighbours import Relations
from megatron_synth.runs import atomic_write


@dataclass(frozen=True)
class Traversal:
    """A path through all documents.

    Attributes:
        documents: int64 [n], each number once.
        similarity: float32 [n], of each to the one before it; NaN where the path jumped to a
            document that is no neighbour, and for the first.
    """

    documents: NDArray[np.int64]
    similarity: NDArray[np.float32]

    @property
    def jumps(self) -> int:
        """How often the path went on where there was no unvisited neighbour."""
        return max(0, int(np.isnan(self.similarity).sum()) - 1)

    @property
    def counts(self) -> dict[str, float]:
        """For the report: `jumps`, and the mean similarity of the other steps."""
        steps = self.similarity[~np.isnan(self.similarity)]
        mean = round(float(steps.mean()), 4) if len(steps) else 0.0
        return {"jumps": self.jumps, "mean_similarity": mean}


def traverse(relations: Relations, documents: int) -> Traversal:
    """Order documents by their neighbours.

    Args:
        relations: d1 and d2 int64 [m], below `documents`; similarity float32 [m].
        documents: How many there are; those without a neighbour come first.
    """
    from megatron_synth.pairing.kernels import join_both_ways, walk

    d1, d2, similarity = (np.ascontiguousarray(column) for column in relations)
    begins, ends, neighbours, similarities = join_both_ways(d1, d2, similarity, documents)
    rarest_first = np.argsort(ends - begins, kind="stable")
    return Traversal(*walk(begins, ends, neighbours, similarities, rarest_first))


def write_order(path: Path, traversal: Traversal, ids: Sequence[str]) -> None:
    """Write an order as blending reads it (`order` of a source).

    Args:
        path: A Parquet file: `document` int64, `id` string, `similarity` float32 (null at jumps).
        traversal: See `traverse`.
        ids: Ids of the documents, by number.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "document": traversal.documents,
            "id": pa.array([ids[i] for i in traversal.documents.tolist()], pa.string()),
            "similarity": pa.array(traversal.similarity, from_pandas=True),
        }
    )
    with atomic_write(path, "wb") as handle:
        pq.write_table(table, handle, compression="zstd")
