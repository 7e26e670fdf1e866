"""Neighbours of more documents than one machine searches: key shards x value shards.

The embeddings lie in several files. A block (i, j) asks for the neighbours that the documents of
shard i (the keys) have in shard j (the values): a job of its own, on any machine, in any order.
When the blocks of a key shard are there, they are merged: the nearest k of each document among
those of all blocks, which is what one search over everything gives (exactly, with exact search).

    out/block-00003-00007.parquet    d1, d2 (row numbers over all shards), similarity
    out/neighbours-00003.parquet     the same, merged

Each file is written whole or not at all, and says what it was made from: a job that was killed is
run again and goes on. Rows stand in the order of d1, then falling similarity, then d2. Row group g
holds keys g * 8192 and on of the shard, so a merge reads one group of each block at a time, and its
memory does not grow with the shards. A search holds one value shard: see `pairing.index`.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_synth.config import ConfigError, DataError
from megatron_synth.pairing.config import PairConfig
from megatron_synth.pairing.index import NeighbourIndex
from megatron_synth.pairing.neighbours import Relations, as_relations, threads, tuned_index
from megatron_synth.pairing.vectors import Rows, check_unit_norm, open_vectors
from megatron_synth.runs import Progress, atomic_write, get_logger, hash_file, hash_json

_log = get_logger(__name__)
_GROUP = 8192
_MADE_FROM = b"megatron_synth"
_SEARCH_SETTINGS = {
    "neighbours", "index", "recall_target", "recall_sample", "nprobe", "k_factor", "seed",
}  # fmt: skip


def search_blocks(
    config: PairConfig,
    shards: Sequence[Path],
    keys: Sequence[int],
    value: int,
    out: Path,
    progress: Progress,
) -> list[Path]:
    """Search one value shard for the documents of some key shards.

    The index is built once for all of `keys`, and not at all if their blocks are there already.

    Args:
        config: Number of neighbours, index, recall, threads.
        shards: Embeddings of all shards, float16 `.npy`, in the order of the documents.
        keys: Numbers of the shards whose documents ask.
        value: Number of the shard that is searched.
        out: Folder to write to; made if it is not there.
        progress: Counts the documents that asked.

    Returns:
        The blocks' files, one for each of `keys`.

    Raises:
        ConfigError: A shard that is not there.
        DataError: A shard that holds no unit vectors, or of another dimension.
    """
    _check_numbers([*keys, value], shards)
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"block-{key:05d}-{value:05d}.parquet" for key in keys]
    made_from = [_made_from(config, shards, key, value) for key in keys]
    missing = [
        (key, path, made)
        for key, path, made in zip(keys, paths, made_from, strict=True)
        if _read_made_from(path).get("hash") != made["hash"]
    ]
    if not missing:
        return paths
    offsets = _offsets(shards)
    vectors = open_vectors(shards[value])
    check_unit_norm(vectors, shards[value])
    rows = Rows.of(vectors)
    with threads(config):
        index, search = tuned_index(config, rows, progress) if len(rows) else (None, {})
        for key, path, made in missing:
            asked = open_vectors(shards[key])
            if asked.shape[1] != vectors.shape[1]:
                raise DataError(
                    f"has {asked.shape[1]} dimensions, {shards[value].name} has {vectors.shape[1]}",
                    where=shards[key],
                )
            check_unit_norm(asked, shards[key])
            progress.phase(f"searching block {key}, {value}", total=len(asked), unit="documents")
            groups = _answers(
                config, index, rows, asked, (int(offsets[key]), int(offsets[value])), progress
            )
            _write(path, groups, {**made, "index": index.kind if index else "none", **search})
    return paths


def merge_blocks(
    config: PairConfig, shards: Sequence[Path], key: int, out: Path, progress: Progress
) -> dict[str, Any]:
    """Merge the blocks of a key shard into `out/neighbours-KEY.parquet`.

    Returns:
        Counts: `documents` (of the shard), `relations`, and `recall`, the least one measured among
        its blocks (None with exact search).

    Raises:
        ConfigError: A shard that is not there.
        DataError: Blocks that are missing, or made from other settings or shards.
    """
    _check_numbers([key], shards)
    blocks = [out / f"block-{key:05d}-{value:05d}.parquet" for value in range(len(shards))]
    made = [_read_made_from(path) for path in blocks]
    plan = _plan(config, shards)
    absent = [b.name for b, m in zip(blocks, made, strict=True) if m.get("plan") != plan]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(blocks)} blocks are missing, or were made with other settings "
            f"or shards: {', '.join(absent[:5])}",
            where=out,
            fix="Run search_blocks for them with these settings.",
        )
    offsets = _offsets(shards)
    documents = int(offsets[key + 1] - offsets[key])
    progress.phase(f"merging shard {key}", total=documents, unit="documents")
    relations = 0

    def groups() -> Iterator[Relations]:
        nonlocal relations
        files = [_open(path) for path in blocks]
        for group in range(files[0].num_row_groups):
            parts = [_columns(file.read_row_group(group)) for file in files]
            merged = _nearest(parts, config.neighbours)
            relations += len(merged[0])
            progress.update(min(documents, (group + 1) * _GROUP))
            yield merged

    _write(out / f"neighbours-{key:05d}.parquet", groups(), {"plan": plan})
    recalls = [m["recall"] for m in made if "recall" in m]
    counts = {
        "documents": documents,
        "relations": relations,
        "recall": min(recalls) if recalls else None,
    }
    _log.info("neighbours of shard %d: %s", key, counts)
    return counts


def read_neighbours(path: Path) -> Relations:
    """Read a block or a merged file: see `Relations`.

    Raises:
        DataError: No such file, or it holds something else.
    """
    import pyarrow as pa

    if not path.is_file():
        raise DataError("no such file of neighbours", where=path)
    try:
        return _columns(_open(path).read())
    except (pa.ArrowException, KeyError) as error:
        raise DataError(f"no table of neighbours: {error}", where=path) from error


def _answers(
    config: PairConfig,
    index: NeighbourIndex | None,
    rows: Rows,
    asked: NDArray[Any],
    offsets: tuple[int, int],
    progress: Progress,
) -> Iterator[Relations]:
    """Relations of each group of keys, with numbers over all shards."""
    first_key, first_value = offsets
    for start in range(0, len(asked), _GROUP):
        queries = np.asarray(asked[start : start + _GROUP], np.float32)
        present = np.flatnonzero(np.any(queries, axis=1))
        if index is None or not len(present):
            yield np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
            continue
        wanted = min(config.neighbours + 1, len(rows))
        similarity, place = index.search(queries[present], wanted)
        d1, d2, found, _ = as_relations(
            present + start + first_key,
            rows.documents(place) + first_value,
            place >= 0,
            similarity,
            config,
        )
        yield _nearest([(d1, d2, found)], config.neighbours)
        progress.update(start + len(queries))


def _nearest(parts: Sequence[Relations], neighbours: int) -> Relations:
    """The nearest of each d1, in the files' order."""
    d1, d2, similarity = (np.concatenate([part[i] for part in parts]) for i in range(3))
    order = np.lexsort((d2, -similarity, d1))
    d1, d2, similarity = d1[order], d2[order], similarity[order]
    first = np.flatnonzero(np.diff(d1, prepend=-1))
    rank = np.arange(len(d1)) - np.repeat(first, np.diff(first, append=len(d1)))
    kept = rank < neighbours
    return d1[kept], d2[kept], similarity[kept]


def _write(path: Path, groups: Iterator[Relations], made_from: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [("d1", pa.int64()), ("d2", pa.int64()), ("similarity", pa.float32())],
        metadata={_MADE_FROM: json.dumps(made_from)},
    )
    with (
        atomic_write(path, "wb") as handle,
        pq.ParquetWriter(handle, schema, compression="zstd") as writer,
    ):
        for group in groups:
            arrays = [pa.array(column) for column in group]
            # One call, one group: of as many rows as it has, none as well.
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), len(group[0]) or 1)


def _open(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path)


def _columns(table: Any) -> Relations:
    return (
        table["d1"].to_numpy(),
        table["d2"].to_numpy(),
        table["similarity"].to_numpy(),
    )


def _plan(config: PairConfig, shards: Sequence[Path]) -> str:
    """Names what blocks must share to be merged: how was searched, and how large the shards are."""
    settings = config.model_dump(mode="json", include=_SEARCH_SETTINGS)
    return hash_json([settings, _offsets(shards).tolist()])


def _made_from(config: PairConfig, shards: Sequence[Path], key: int, value: int) -> dict[str, str]:
    plan = _plan(config, shards)
    content = [hash_file(shards[key]), hash_file(shards[value])]
    return {"plan": plan, "hash": hash_json([plan, key, value, content])}


def _read_made_from(path: Path) -> dict[str, Any]:
    """What a file says of itself; nothing where there is none, or one of somebody else."""
    import pyarrow as pa

    if not path.is_file():
        return {}
    try:
        metadata = _open(path).schema_arrow.metadata or {}
    except pa.ArrowException as error:
        raise DataError(
            f"damaged: {error}", where=path, fix="Delete it and run its block again."
        ) from error
    found: dict[str, Any] = json.loads(metadata.get(_MADE_FROM, b"{}"))
    return found


def _offsets(shards: Sequence[Path]) -> NDArray[np.int64]:
    """int64 [shards + 1]: the number of each shard's first document."""
    sizes = [len(open_vectors(path)) for path in shards]
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _check_numbers(numbers: Sequence[int], shards: Sequence[Path]) -> None:
    for number in numbers:
        if not 0 <= number < len(shards):
            raise ConfigError(
                f"no shard {number}: there are {len(shards)}, from 0 to {len(shards) - 1}"
            )
