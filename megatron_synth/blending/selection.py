"""Which documents of a corpus are meant, and in which order: scores, masks, traversals."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from megatron_synth.blending import kernels
from megatron_synth.blending.divide import exactly
from megatron_synth.blending.sources import SelectConfig, SourceConfig
from megatron_synth.config import ConfigError, DataError
from megatron_synth.packing.info import CorpusPaths
from megatron_synth.runs import hash_file

Int64s = NDArray[np.int64]


def choose(source: SourceConfig, prefix: Path, table: kernels.Table) -> Int64s:
    """Numbers of the documents that `source` means: ascending, or in its order.

    Args:
        source: Selection and order, at least one of them.
        prefix: Path of the corpus without `.bin`/`.idx`.
        table: All documents of the corpus.

    Raises:
        ConfigError: Nothing is selected.
        DataError: A file is missing, damaged, or does not fit the corpus.
    """
    kept = None
    if source.select is not None:
        kept = _selected(source.select, prefix, table)
        if not kept.any():
            raise ConfigError(
                "selects no document", where=source.select.file, fix="Lower above, or raise top."
            )
    if source.order is None:
        assert kept is not None
        return np.flatnonzero(kept)
    order = read_order(source.order, table.size)
    return order if kept is None else np.asarray(order[kept[order]])


def rules_of(source: SourceConfig, prefix: Path) -> dict[str, Any]:
    """What decides `choose` besides the corpus: rules, and hashes of the files (not paths).

    Args:
        source: Selection and order.
        prefix: Path prefix of the corpus, whose side table matches scores by id.

    Raises:
        DataError: A file is missing.
    """
    rules: dict[str, Any] = {}
    if source.select is not None:
        rules["select"] = {
            **source.select.model_dump(exclude={"file"}),
            "file": _hash_of(source.select.file),
        }
        if source.select.file.suffix == ".parquet":
            rules["ids"] = hash_file(_side_table(prefix))
    if source.order is not None:
        rules["order"] = _hash_of(source.order)
    return rules


def read_order(path: Path, documents: int) -> Int64s:
    """Read an order of documents: int64[documents], each number once.

    Raises:
        DataError: Not such a file, or not an order of just these documents.
    """
    if path.suffix == ".parquet":
        order = _column(path, "document").to_numpy(zero_copy_only=False)
    else:
        order = _load(path)
    if order.ndim != 1 or order.dtype.kind not in "iu":
        raise DataError(f"is {order.dtype}{list(order.shape)}, not a list of numbers", where=path)
    named = np.zeros(documents, dtype=bool)
    inside = order[(order >= 0) & (order < documents)]
    named[inside] = True
    if len(order) != documents or not named.all():
        span = f"{order.min()} to {order.max()}" if len(order) else "none"
        raise DataError(
            f"is not an order of the corpus's {documents:,} documents: {len(order):,} numbers, "
            f"{np.count_nonzero(named):,} of the documents named, {span}",
            where=path,
            fix="Each number from 0 on must stand there once: make the order from this corpus.",
        )
    return np.asarray(order, dtype=np.int64)


def _selected(select: SelectConfig, prefix: Path, table: kernels.Table) -> NDArray[np.bool_]:
    """bool[documents]: which are meant."""
    scores = _scores(select, prefix, table.size)
    if scores.dtype == np.bool_:
        if select.top is not None or select.above is not None:
            raise ConfigError(
                "is a mask, but top or above asks for scores",
                where=select.file,
                fix="Leave top and above out, or give scores.",
            )
        return scores
    if select.top is None and select.above is None:
        raise ConfigError(
            f"holds {scores.dtype}, not a mask", where=select.file, fix="Set top or above."
        )
    unknown = int(np.isnan(scores).sum())
    if unknown:
        raise DataError(f"{unknown:,} of {len(scores):,} scores are NaN", where=select.file)
    if select.above is not None:
        return scores > select.above
    assert select.top is not None
    if select.of == "documents":
        return _highest(scores, int(exactly(select.top) * len(scores)))
    ranked = np.argsort(-scores, kind="stable")  # equal scores: the earlier document first
    lengths = document_lengths(table)
    reached = np.cumsum(lengths[ranked])
    count = int(np.searchsorted(reached, int(exactly(select.top) * reached[-1]), "right"))
    kept = np.zeros(len(scores), dtype=bool)
    kept[ranked[:count]] = True
    return kept


def _highest(scores: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """The `count` highest; of equal scores the earlier ones. Without sorting all of them."""
    if count == 0:
        return np.zeros(len(scores), dtype=bool)
    lowest = np.partition(scores, len(scores) - count)[len(scores) - count]
    kept = scores > lowest
    equal = np.flatnonzero(scores == lowest)
    kept[equal[: count - int(np.count_nonzero(kept))]] = True
    return np.asarray(kept)


def document_lengths(table: kernels.Table) -> Int64s:
    """Tokens of each document of the corpus, int64[documents]."""
    if table.single:
        return table.lengths.astype(np.int64)
    ends = np.concatenate([table.pointers, [table.end]])
    lengths: Int64s = np.diff(ends[table.borders]) // table.item
    return lengths


def _scores(select: SelectConfig, prefix: Path, documents: int) -> NDArray[Any]:
    """Score (or mask) of each document, in the corpus's order."""
    if select.file.suffix == ".npy":
        scores = _load(select.file)
        if scores.shape != (documents,) or scores.dtype.kind not in "fiub":
            raise DataError(
                f"is {scores.dtype}{list(scores.shape)}; the corpus has {documents:,} documents",
                where=select.file,
                fix="Give one number (or true/false) for each document, in the corpus's order.",
            )
        return scores if scores.dtype == np.bool_ else scores.astype(np.float64)
    side = _side_table(prefix)
    ids, keys = _ids(side), _ids(select.file)
    if len(pc.unique(keys)) != len(keys):
        raise DataError("an id has several scores", where=select.file)
    if len(ids) != documents:
        raise DataError(
            f"has {len(ids):,} rows, the corpus {documents:,} documents",
            where=side,
            fix="Pack the corpus again.",
        )
    found = pc.index_in(ids, value_set=keys)
    if found.null_count:
        first = pc.filter(ids, found.is_null())[0].as_py()
        raise DataError(
            f"{found.null_count:,} of {documents:,} documents have no score, the first is "
            f"{first!r}",
            where=select.file,
            fix="Score every document of the corpus.",
        )
    values = _column(select.file, select.column)
    kind = values.type
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
    if not any(is_one(kind) for is_one in numbers):
        raise DataError(f"column {select.column!r} holds {kind}, not numbers", where=select.file)
    scores = values.to_numpy(zero_copy_only=False).astype(np.float64)[found.to_numpy()]
    return np.asarray(scores)


def _ids(path: Path) -> Any:
    """Column `id` of a Parquet file, large_string[rows]."""
    ids = _column(path, "id")
    if pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_decode()
    if not (pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
        raise DataError(
            f"column 'id' holds {ids.type}, not text",
            where=path,
            fix="Write the ids as the corpus's side table has them.",
        )
    return ids.cast(pa.large_string())


def _side_table(prefix: Path) -> Path:
    side = CorpusPaths(prefix).provenance
    if not side.is_file():
        raise DataError(
            "the corpus has no side table, so scores cannot be matched by id",
            where=side,
            fix="Pack it with provenance (the default), or give scores as .npy in its order.",
        )
    return side


def _column(path: Path, name: str) -> Any:
    """A column of a Parquet file, as one array."""
    if not path.is_file():
        raise DataError("no such file", where=path)
    try:
        column = pq.read_table(path, columns=[name])[name]
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(f"its column {name!r} cannot be read: {error}", where=path) from error
    if pa.types.is_string(column.type):  # in one array of 32-bit offsets they might not fit
        column = column.cast(pa.large_string())
    return column.combine_chunks()


def _load(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise DataError("no such file", where=path)
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise DataError("damaged, or not a .npy file of numbers", where=path) from error


def _hash_of(path: Path) -> str:
    if not path.is_file():
        raise DataError("no such file", where=path)
    return hash_file(path)
