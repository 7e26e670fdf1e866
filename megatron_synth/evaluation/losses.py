"""Per-document losses: the record, its file, and its mean with a standard error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_synth.config import DataError
from megatron_synth.evaluation.clusters import cluster_count, cluster_sums
from megatron_synth.runs import atomic_write


@dataclass(frozen=True)
class DocumentLosses:
    """What one model scored on a list of documents.

    Attributes:
        ids: Document ids, n of them, each once.
        nll_sum: float64 [n], sum of -log p over a document's predicted tokens, in nats.
        tokens: int64 [n], how many tokens were predicted; at least 1.
        groups: The group (such as a package) that each document was held out with, None for a
            document without one; None where no document has one. Documents of one group are not
            independent: uncertainty is over groups.
    """

    ids: tuple[str, ...]
    nll_sum: NDArray[np.float64]
    tokens: NDArray[np.int64]
    groups: tuple[str | None, ...] | None = None

    def __post_init__(self) -> None:
        nll, tokens = np.asarray(self.nll_sum), np.asarray(self.tokens)
        check_losses(nll, tokens)
        if len(self.ids) != len(nll):
            raise DataError(f"{len(self.ids)} document ids for {len(nll)} losses")
        if len(set(self.ids)) != len(self.ids):
            raise DataError("a document id occurs more than once among the losses")
        groups = None if self.groups is None else tuple(self.groups)
        if groups is not None and len(groups) != len(self.ids):
            raise DataError(f"{len(groups)} groups for {len(self.ids)} documents")
        if groups is not None and all(group is None for group in groups):
            groups = None
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "ids", tuple(self.ids))
        object.__setattr__(self, "nll_sum", nll.astype(np.float64))
        object.__setattr__(self, "tokens", tokens.astype(np.int64))

    @property
    def clusters(self) -> int:
        """Independent draws: groups, and documents without one."""
        return cluster_count(len(self.ids), self.groups)


def check_losses(nll_sum: NDArray[Any], tokens: NDArray[Any]) -> None:
    """Refuse losses that no mean can be taken of.

    Raises:
        DataError: Shapes differ, there is no document, a loss is not finite, or a document has
            no predicted token.
    """
    if nll_sum.shape != tokens.shape or nll_sum.ndim != 1:
        raise DataError(f"losses {nll_sum.shape} and tokens {tokens.shape} must be equal vectors")
    if len(nll_sum) == 0:
        raise DataError("there are no document losses", fix="Check the validation documents.")
    if not np.isfinite(nll_sum).all():
        bad = int((~np.isfinite(nll_sum)).sum())
        raise DataError(f"{bad} of {len(nll_sum)} document losses are not finite")
    if (tokens < 1).any():
        raise DataError(f"{int((tokens < 1).sum())} documents have no predicted token")


def mean_loss(
    nll_sum: NDArray[Any],
    tokens: NDArray[Any],
    *,
    groups: Sequence[str | None] | None = None,
) -> tuple[float, float]:
    """Mean loss per token, and its standard error over clusters of documents.

    The mean is a ratio of two sums over clusters, r = Σ nll / Σ tokens, so neither tokens of one
    document nor documents of one group are taken as independent. By the delta method (Cochran,
    Sampling Techniques, 3rd ed., sections 6.3 and 9A.2), with m clusters and their residuals
    d_c = nll_c - r·tokens_c,

        se(r)² = m/(m-1) · Σ d_c² / (Σ tokens)².

    Args:
        nll_sum: [n], nats.
        tokens: [n], positive.
        groups: [n] names; documents of one name are one cluster, those of None one each. Without
            it, every document is a cluster.

    Returns:
        Mean and standard error, nats per token; the error is NaN for a single cluster.

    Raises:
        DataError: See `check_losses`, or another number of groups.
    """
    nll = np.asarray(nll_sum, np.float64)
    count = np.asarray(tokens, np.float64)
    check_losses(nll, count)
    total = count.sum()
    mean = nll.sum() / total
    residual = cluster_sums((nll - mean * count)[None], groups)[0]
    clusters = len(residual)
    if clusters == 1:
        return float(mean), math.nan
    variance = clusters / (clusters - 1) * (residual @ residual) / total**2
    return float(mean), math.sqrt(variance)


def write_losses(path: Path, losses: DocumentLosses) -> None:
    """Write Parquet, atomically.

    Columns: `id` string, `nll_sum` float64, `tokens` int64, `group` string, null for no group.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "id": pa.array(losses.ids, pa.string()),
            "nll_sum": losses.nll_sum,
            "tokens": losses.tokens,
            "group": pa.array(losses.groups or [None] * len(losses.ids), pa.string()),
        }
    )
    with atomic_write(path, "wb") as handle:
        pq.write_table(table, handle, compression="zstd")


def read_losses(path: Path) -> DocumentLosses:
    """Read what `write_losses` wrote; a file without the column `group` has no groups.

    Raises:
        DataError: No such file, or it holds something else.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataError("no such file of document losses", where=path)
    try:
        table = pq.read_table(path)
        grouped = "group" in table.column_names
        return DocumentLosses(
            tuple(table["id"].to_pylist()),
            table["nll_sum"].to_numpy(),
            table["tokens"].to_numpy(),
            tuple(table["group"].to_pylist()) if grouped else None,
        )
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise DataError(f"no table of document losses: {error}", where=path) from error
    except DataError as error:
        raise DataError(error.what, where=path, fix=error.fix) from error


def same_documents(*arms: DocumentLosses) -> None:
    """Refuse to compare arms that were not measured on the same documents in the same order.

    Raises:
        DataError: Ids, token counts or groups differ.
    """
    first = arms[0]
    for other in arms[1:]:
        if other.ids != first.ids:
            common = len(set(first.ids) & set(other.ids))
            raise DataError(
                f"the arms were measured on different documents: {len(first.ids)} and "
                f"{len(other.ids)}, of which {common} are the same",
                fix="Evaluate every arm on the same validation file.",
            )
        if not np.array_equal(other.tokens, first.tokens):
            raise DataError(
                "the arms count different tokens for the same documents",
                fix="Evaluate every arm with the same tokenizer and context length.",
            )
        if other.groups != first.groups:
            raise DataError(
                "the arms put the same documents into different groups",
                fix="Evaluate every arm on the same validation file.",
            )
