"""How often was each organic source trained on, its derived documents counted in?

Sources are counted by a 64-bit hash of their id (`keys`): 20 bytes each and 8 more for each
corpus are kept; with two corpora the peak was 54 bytes a source and a quarter of a gigabyte. Their
names are read again when the table is written.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_synth.blending.recount.keys import text_keys
from megatron_synth.config import DataError
from megatron_synth.runs import atomic_write, get_logger

_ROWS = 1 << 18
_MOST_EXPOSED = 10
_log = get_logger(__name__)

Int64s = NDArray[np.int64]
UInt64s = NDArray[np.uint64]


@dataclass(frozen=True)
class ServedCorpus:
    """What was served of a corpus.

    Attributes:
        name: Its name in the plan.
        side_table: `PREFIX_text_document.provenance.parquet`; it need not be there.
        tokens: int64[documents], inputs served of each document.
        begun: int64[documents], how often its first token was one.
        meant: bool[documents], the documents that the plan means; None: all.
    """

    name: str
    side_table: Path
    tokens: Int64s
    begun: Int64s
    meant: NDArray[np.bool_] | None = None


def write_exposure(corpora: Iterable[ServedCorpus], path: Path) -> dict[str, Any]:
    """Write how many trained tokens came from each organic source, and sum it up.

    The source of a document is its `source_id`; of one that has none and no `method` either (an
    organic one), its own `id`; else it is unknown. A document that has a `method`, or a
    `source_id` that is not its own `id`, is derived (also a megadoc, which holds its source's
    text). Sources are those of all documents that the plan means, also those never served.

    The table has a row for each source, in the order of the side tables: `source_id`, `tokens`,
    `tokens_organic`, `tokens_derived`, `derived_begun` (how often a derived document was begun)
    and, for each corpus with a side table, `tokens:NAME`. All count inputs that were served; of a
    document that was served in part, that part.

    Args:
        corpora: What was served.
        path: The table to write (Parquet, zstd), atomically.

    Returns:
        `sources`, `sources_unseen`, `tokens`, `tokens_unknown` (of a corpus without a side table,
        or of a document without a source), tokens a source: `min`, `median`, `mean`, `p99`,
        `max` (None without sources), `top_1_percent_share` of the tokens of known sources, and
        `most_exposed`: ten of {source_id, tokens}.

    Raises:
        DataError: A side table has another number of rows than its corpus has documents.
        RunError: The table cannot be written.
    """
    served = list(corpora)
    known = [corpus for corpus in served if _has_table(corpus)]
    unknown = [corpus.name for corpus in served if corpus not in known]
    if unknown:
        _log.info("no side table of provenance: tokens of %s have no source", ", ".join(unknown))
    count = _Sources(known)
    for index, corpus in enumerate(known):
        for rows in _rows(corpus):
            count.add(index, rows)
    top = count.most_exposed()
    named = dict(count.write(known, path, top))
    total = sum(int(corpus.tokens.sum()) for corpus in served)
    totals = count.totals()
    return {
        **count.summary(),
        "tokens": total,
        "tokens_unknown": total - int(totals.sum()),
        "most_exposed": [
            {"source_id": named[place], "tokens": int(totals[place])} for place in top
        ],
    }


@dataclass(frozen=True)
class _Rows:
    """Some documents of a side table whose source is known, and which the plan means.

    Attributes:
        source: Arrow array of their sources' ids.
        key: uint64[rows], the same as hashes.
        derived: bool[rows].
        tokens: int64[rows], inputs served.
        begun: int64[rows].
    """

    source: Any
    key: UInt64s
    derived: NDArray[np.bool_]
    tokens: Int64s
    begun: Int64s


class _Sources:
    """Tokens by source."""

    def __init__(self, corpora: list[ServedCorpus]) -> None:
        self._names = [corpus.name for corpus in corpora]
        self._keys = _distinct(rows.key for corpus in corpora for rows in _rows(corpus))
        size = len(self._keys)
        self._by_corpus = [np.zeros(size, dtype=np.int64) for _ in corpora]
        self._organic = np.zeros(size, dtype=np.int64)
        self._begun = np.zeros(size, dtype=np.int32)

    def add(self, corpus: int, rows: _Rows) -> None:
        """Count rows of corpus number `corpus`."""
        at = self._places(rows)
        np.add.at(self._by_corpus[corpus], at, rows.tokens)
        organic = ~rows.derived
        np.add.at(self._organic, at[organic], rows.tokens[organic])
        np.add.at(self._begun, at[rows.derived], rows.begun[rows.derived].astype(np.int32))

    def totals(self) -> Int64s:
        """Tokens of each source, int64[sources]."""
        totals = np.zeros(len(self._keys), dtype=np.int64)
        for tokens in self._by_corpus:
            totals += tokens
        return totals

    def most_exposed(self) -> list[int]:
        """The places of the ten with the most tokens, most first."""
        totals = self.totals()
        few = min(_MOST_EXPOSED, len(totals))
        best = np.argpartition(-totals, few - 1)[:few] if few else np.empty(0, dtype=np.int64)
        ranked: list[int] = best[np.lexsort((best, -totals[best]))].tolist()
        return ranked

    def summary(self) -> dict[str, Any]:
        """Figures over all sources."""
        totals = np.sort(self.totals())
        size, whole = len(totals), int(totals.sum())
        figures: dict[str, Any] = dict.fromkeys(("min", "median", "mean", "p99", "max"))
        if size:
            figures = {
                "min": int(totals[0]),
                "median": float(np.median(totals)),
                "mean": whole / size,
                "p99": float(np.percentile(totals, 99)),
                "max": int(totals[-1]),
            }
        top = int(totals[size - -(-size // 100) :].sum()) if size else 0
        return {
            "sources": size,
            "sources_unseen": int(np.searchsorted(totals, 1)),
            **figures,
            "top_1_percent_share": top / whole if whole else 0.0,
        }

    def write(
        self, corpora: list[ServedCorpus], path: Path, named: list[int]
    ) -> Iterator[tuple[int, str]]:
        """Write the table; yields the places in `named` with their sources' ids."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        numbers = ("tokens", "tokens_organic", "tokens_derived", "derived_begun")
        columns = [*numbers, *(f"tokens:{name}" for name in self._names)]
        schema = pa.schema([("source_id", pa.string()), *((name, pa.int64()) for name in columns)])
        written = np.zeros(len(self._keys), dtype=bool)
        with (
            atomic_write(path, "wb") as handle,
            pq.ParquetWriter(handle, schema, compression="zstd") as table,
        ):
            for rows in (rows for corpus in corpora for rows in _rows(corpus)):
                at = self._places(rows)
                fresh = np.sort(np.unique(at, return_index=True)[1])
                fresh = fresh[~written[at[fresh]]]
                if not len(fresh):
                    continue
                places = at[fresh]
                written[places] = True
                source = rows.source.take(pa.array(fresh))
                by_corpus = [tokens[places] for tokens in self._by_corpus]
                total, organic = np.sum(by_corpus, axis=0), self._organic[places]
                values = [total, organic, total - organic, self._begun[places], *by_corpus]
                arrays = [source, *(pa.array(v.astype(np.int64)) for v in values)]
                table.write_table(pa.Table.from_arrays(arrays, schema=schema))
                for place in set(named) & set(places.tolist()):
                    yield place, source[int(np.flatnonzero(places == place)[0])].as_py()

    def _places(self, rows: _Rows) -> Int64s:
        return np.searchsorted(self._keys, rows.key)


def _distinct(parts: Iterable[UInt64s]) -> UInt64s:
    """All different keys, sorted; at no time more than about four times their memory."""
    keys = np.empty(0, dtype=np.uint64)
    waiting: list[UInt64s] = []
    for part in parts:
        waiting.append(_sorted([part]))
        if sum(map(len, waiting)) > max(len(keys), 1 << 20):
            keys, waiting = _sorted([keys, *waiting]), []
    return _sorted([keys, *waiting])


def _sorted(parts: list[UInt64s]) -> UInt64s:
    """Different keys by sorting: numpy's `unique` would keep a hash table of them."""
    keys = np.concatenate(parts)
    keys.sort()
    fresh = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=fresh[1:])
    different: UInt64s = keys[fresh]
    return different


def _has_table(corpus: ServedCorpus) -> bool:
    import pyarrow.parquet as pq

    if not corpus.side_table.is_file():
        return False
    rows = pq.read_metadata(corpus.side_table).num_rows
    if rows != len(corpus.tokens):
        raise DataError(
            f"has {rows:,} rows, the corpus {len(corpus.tokens):,} documents",
            where=corpus.side_table,
            fix="Pack the corpus again.",
        )
    return True


def _rows(corpus: ServedCorpus) -> Iterator[_Rows]:
    """The documents that the plan means and whose source is known, some at a time."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    first = 0
    columns = ["id", "source_id", "method"]
    for batch in pq.ParquetFile(corpus.side_table).iter_batches(_ROWS, columns=columns):
        here = slice(first, first + len(batch))
        first += len(batch)
        own = batch["id"]
        made = pc.is_valid(batch["method"])
        source = pc.coalesce(batch["source_id"], pc.if_else(made, None, own))
        derived = pc.or_(made, pc.fill_null(pc.not_equal(source, own), True))
        kept = pc.is_valid(source).to_numpy(zero_copy_only=False)
        if corpus.meant is not None:
            kept = kept & corpus.meant[here]
        at = np.flatnonzero(kept)
        source = source.take(at)
        yield _Rows(
            source=source,
            key=text_keys(source),
            derived=derived.to_numpy(zero_copy_only=False)[at],
            tokens=corpus.tokens[here][at],
            begun=corpus.begun[here][at],
        )
