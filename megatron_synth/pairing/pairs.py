"""From neighbours to training pairs: threshold, directions, near-duplicates, cap (SBP, A.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_synth.config import DataError
from megatron_synth.pairing.bins import read_labels
from megatron_synth.pairing.config import PairConfig
from megatron_synth.pairing.duplicates import SharesText, no_test, shingle_test
from megatron_synth.pairing.neighbours import Candidates, find_neighbours
from megatron_synth.pairing.order import traverse, write_order
from megatron_synth.pairing.summary import describe, too_few
from megatron_synth.pairing.vectors import load_vectors
from megatron_synth.runs import Progress, atomic_write, get_logger, write_json

_log = get_logger(__name__)
_BLOCK = 8192


@dataclass(frozen=True)
class Selection:
    """Which candidates became pairs.

    Attributes:
        kept: int64, positions in the candidates, most similar first.
        near_duplicates: int64, positions that were dropped for a shared shingle.
        threshold: Every kept similarity is over it.
        drops: Counts by reason: `below_threshold`, `other_direction`, `near_duplicate`, `over_cap`.
    """

    kept: NDArray[np.int64]
    near_duplicates: NDArray[np.int64]
    threshold: float
    drops: dict[str, int]


def find_pairs(
    config: PairConfig, embeddings: Path, documents: Path, out: Path, progress: Progress
) -> dict[str, Any]:
    """Find related pairs and write them.

    Writes `out/pairs.parquet`: d1 int64, d2 int64 (numbers of documents in file order), similarity
    float32, most similar first; and `out/report.json`, see `pairing.summary.describe`. Both are
    atomic; a run that was killed starts over and gives the same files.

    Args:
        config: See `PairConfig`.
        embeddings: `embeddings.npy`, float [n, d], unit rows; an `ids.parquet` beside it must
            name the documents in the same order.
        documents: The documents file, n documents.
        out: Folder to write to.
        progress: Counts documents searched and pairs checked.

    Returns:
        Counts: `pairs`, `threshold`, `documents`, `documents_as_d1`, `documents_as_d2`, `index`,
        `search` (how it was set and its recall; empty for exact search), `candidates`, `order`
        (with `icpt_order`: `jumps`, `mean_similarity`), and
        `dropped` by reason.

    Raises:
        DataError: Files that do not fit each other, or fewer than `min_pairs` pairs: the message
            gives the quantiles of the similarities and what other thresholds would give.
    """
    from megatron_synth.corpus import read_documents

    vectors = load_vectors(embeddings)
    ids, texts, labels = [], [], []
    for document in read_documents(documents):
        ids.append(document.id)
        texts.append(document.text)
        if config.label_key is not None:
            labels.append(read_labels(document, config.label_key))
    _check_same_documents(embeddings, documents, ids, len(vectors))
    if config.label_key is not None and not any(labels):
        raise DataError(
            f"no document has a label {config.label_key!r}",
            where=documents,
            fix="label_key names a key of the documents' metadata, a string or a list of them.",
        )
    candidates = find_neighbours(config, vectors, progress)
    progress.phase("comparing texts", total=len(candidates.d1), unit="pairs")
    shares = shingle_test(texts) if config.drop_near_duplicates else no_test
    selection = select(config, candidates, shares, progress)
    if len(selection.kept) < config.min_pairs:
        raise too_few(config, candidates, selection.drops, len(selection.kept), embeddings)
    target = config.target_pairs
    if target is not None and len(selection.kept) < target:
        _log.warning(
            "%d pairs found where target_pairs asks for %d: there are no more among %d neighbours",
            len(selection.kept),
            target,
            config.neighbours,
        )
    report = describe(config, candidates, selection, ids, texts, labels or None)
    report["counts"]["search"] = candidates.search
    out.mkdir(parents=True, exist_ok=True)
    if config.icpt_order:
        progress.phase("ordering documents")
        path = traverse((candidates.d1, candidates.d2, candidates.similarity), len(ids))
        write_order(out / "order.parquet", path, ids)
        report["counts"]["order"] = path.counts
    _write_pairs(out / "pairs.parquet", candidates, selection.kept)
    write_json(out / "report.json", report)
    counts: dict[str, Any] = report["counts"]
    _log.info("pairs: %s", counts)
    return counts


def select(
    config: PairConfig, candidates: Candidates, shares_text: SharesText, progress: Progress
) -> Selection:
    """Choose pairs among candidates.

    Texts are compared in falling order of similarity and only as far as needed: down to the
    threshold, or until `target_pairs` are found.
    """
    d1, d2, similarity = candidates.d1, candidates.d2, candidates.similarity
    floor = config.floor
    floor = 0.0 if floor is None else floor  # a target never takes unrelated pairs in
    end = int(np.count_nonzero(similarity > floor))
    drops = {"below_threshold": 0, "other_direction": 0, "near_duplicate": 0, "over_cap": 0}
    kept: list[int] = []
    duplicates: list[int] = []
    per_document: dict[int, int] = {}
    taken: set[tuple[int, int]] = set()
    place = 0
    while place < end and not (config.target_pairs and len(kept) >= config.target_pairs):
        if place % _BLOCK == 0:
            block = slice(place, min(place + _BLOCK, end))
            duplicate = shares_text(d1[block], d2[block])
        first, second = int(d1[place]), int(d2[place])
        pair = (min(first, second), max(first, second))
        if duplicate[place % _BLOCK]:
            drops["near_duplicate"] += 1
            duplicates.append(place)
        elif config.directions == "one" and pair in taken:
            drops["other_direction"] += 1
        elif per_document.get(first, 0) >= (config.max_pairs_per_document or end):
            drops["over_cap"] += 1
        else:
            per_document[first] = per_document.get(first, 0) + 1
            taken.add(pair)
            kept.append(place)
        place += 1
        if place % _BLOCK == 0:
            progress.update(place)
    progress.update(len(d1))
    drops["below_threshold"] = len(d1) - place
    threshold = floor
    if config.target_pairs and len(kept) >= config.target_pairs:
        # The largest threshold that gives these pairs again under the same rule (similarity > α).
        threshold = float(np.nextafter(similarity[kept[-1]], np.float32(-1)))
    return Selection(np.array(kept, np.int64), np.array(duplicates, np.int64), threshold, drops)


def read_pairs(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Read `pairs.parquet`: d1, d2 int64 [pairs], similarity float32 [pairs].

    Raises:
        DataError: No such file, or it holds something else.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataError("no such pairs file", where=path, fix="Run the pairing step first.")
    try:
        table = pq.read_table(path, columns=["d1", "d2", "similarity"])
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"no table of pairs: {error}", where=path) from error
    return (
        table["d1"].to_numpy().astype(np.int64),
        table["d2"].to_numpy().astype(np.int64),
        table["similarity"].to_numpy().astype(np.float32),
    )


def _write_pairs(path: Path, candidates: Candidates, kept: NDArray[np.int64]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "d1": candidates.d1[kept],
            "d2": candidates.d2[kept],
            "similarity": candidates.similarity[kept],
        }
    )
    with atomic_write(path, "wb") as handle:
        pq.write_table(table, handle, compression="zstd")


def _check_same_documents(embeddings: Path, documents: Path, ids: Sequence[str], rows: int) -> None:
    if len(ids) != rows:
        raise DataError(
            f"{rows} embeddings for {len(ids)} documents",
            where=documents,
            fix=f"Embed this file again; {embeddings} was made from another one.",
        )
    beside = embeddings.with_name("ids.parquet")
    if beside.is_file():
        import pyarrow.parquet as pq

        embedded = pq.read_table(beside, columns=["id"])["id"].to_pylist()
        if embedded != list(ids):
            raise DataError(
                "the embeddings are of other documents, or in another order",
                where=documents,
                fix=f"Embed this file again; {beside} names the documents that were embedded.",
            )
