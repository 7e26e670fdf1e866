"""Decontamination: documents that hold a 13-gram of a benchmark query.

A query's texts and a document are normalised and cut into shingles alike (`shingles.py`: lower
case, no punctuation, no digits), and a document that shares one shingle with a query is a hit
(Brown et al. 2020, appendix C; METHODS 1). Only queries are compared, never answers.
Memory: about 130 bytes a distinct 13-gram while the queries are read, all else included (280 MB
for 132,000 queries with 2.1M of them). Time: about 30 MB/s of documents, nearly all of it shingles.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from megatron_synth.config import Config, DataError
from megatron_synth.corpus.document import BadRow
from megatron_synth.corpus.files import is_parquet, list_all, row_stem, shown_path
from megatron_synth.corpus.gram_table import GramTable
from megatron_synth.corpus.lines import Broken, TooLong, read_lines
from megatron_synth.corpus.reading import parse_json
from megatron_synth.corpus.shingles import SHINGLE_TOKENS, batch_shingles
from megatron_synth.runs import get_logger

_SHORTEST_WHOLE = 8
"""Brown et al. 2020 compare grams of 8 to 13 words: shorter ones are everyday phrases."""

_log = get_logger(__name__)


class DecontaminateConfig(Config):
    """Which benchmarks are kept out of the corpus, and how."""

    queries: tuple[str, ...] = Field(min_length=1)
    """Files, folders or globs of JSONL (plain, .gz, .zst). A benchmark is named by its file up to
    the first dot, with its folders below what they share where several folders have a file of that
    name; a query by its `id`, else `BENCHMARK:LINE`."""
    keys: tuple[str, ...] = ("query", "question", "context", "context_options")
    """Keys of a row that hold a query's text, a string or a list of strings. Each text of each
    key that is there counts."""
    ngram: int = Field(default=SHINGLE_TOKENS, ge=_SHORTEST_WHOLE, le=100)
    """Words in a row that a document and a query must share."""
    short_queries: Literal["skip", "whole"] = "skip"
    """What becomes of query texts of fewer than `ngram` words. `skip`: they are compared with
    nothing. `whole`: those of 8 words or more are hits where a document holds all of the text;
    shorter ones are skipped. What is skipped is counted and logged."""
    action: Literal["drop", "cut"] = "drop"
    """`drop` the document, or `cut` the shared passage out of it."""


@dataclass(frozen=True)
class Query:
    """One item of a benchmark."""

    benchmark: str
    id: str


@dataclass(frozen=True)
class Hit:
    """A document's overlap with queries.

    Attributes:
        queries: Distinct queries, in the order of their files.
        grams: (first word, words) of each shared gram; words as `batch_shingles` counts them.
    """

    queries: tuple[Query, ...]
    grams: tuple[tuple[int, int], ...]


class Benchmarks:
    """The grams of all queries.

    Attributes:
        counts: `queries`; `texts`, of which `skipped_short` were too short to compare and
            `compared_whole` are shorter than `ngram`; `grams` (distinct); `without_text`: rows
            with no text under any key.

    Raises:
        DataError: No such file, a damaged row, or a file without any query text.
    """

    def __init__(self, config: DecontaminateConfig) -> None:
        self._queries: list[Query] = []
        self.counts: Counter[str] = Counter(
            dict.fromkeys(
                ("queries", "texts", "skipped_short", "compared_whole", "without_text"), 0
            )
        )
        texts, owners = self._read(config)
        self._grams: dict[int, GramTable] = {}
        for size, chosen in sorted(self._by_size(config, texts).items()):
            sets = batch_shingles([texts[i] for i in chosen], size)
            owner = np.repeat(np.array([owners[i] for i in chosen]), np.diff(sets.offsets))
            self._grams[size] = GramTable(sets.hashes, owner)
        self.counts["grams"] = sum(table.distinct for table in self._grams.values())
        if self.counts["skipped_short"]:
            _log.info(
                "%s of %s query texts are too short to compare (short_queries=%s)",
                *(f"{self.counts[name]:,}" for name in ("skipped_short", "texts")),
                config.short_queries,
            )

    def hits(self, texts: Sequence[str]) -> list[Hit | None]:
        """For each text, what it shares with queries, or None."""
        found: list[Counter[int]] = [Counter() for _ in texts]
        grams: list[list[tuple[int, int]]] = [[] for _ in texts]
        for size, table in self._grams.items():
            sets = batch_shingles(texts, size)
            for place, owners in table.find(sets.hashes):
                document = int(np.searchsorted(sets.offsets, place, side="right")) - 1
                grams[document].append((int(place - sets.offsets[document]), size))
                found[document].update(owners)
        return [
            Hit(tuple(self._queries[q] for q in sorted(queries)), tuple(grams[i]))
            if queries
            else None
            for i, queries in enumerate(found)
        ]

    def _read(self, config: DecontaminateConfig) -> tuple[list[str], list[int]]:
        texts: list[str] = []
        owners: list[int] = []
        for path, name in _benchmark_names(list_all(config.queries)).items():
            before = len(texts)
            for line, row in _rows(path):
                own = list(_texts(row, config.keys))
                self.counts["queries" if own else "without_text"] += 1
                given = row.get("id")
                identity = f"{name}:{line}" if given in (None, "") else str(given)
                self._queries.append(Query(name, identity))
                texts += own
                owners += [len(self._queries) - 1] * len(own)
            if len(texts) == before:
                raise DataError(
                    f"no row has a text under any of the keys {', '.join(config.keys)}",
                    where=path,
                    fix="Name the key of the query in decontaminate.keys.",
                )
        self.counts["texts"] = len(texts)
        return texts, owners

    def _by_size(self, config: DecontaminateConfig, texts: Sequence[str]) -> dict[int, list[int]]:
        """Which texts are compared by grams of which size."""
        sizes: dict[int, list[int]] = {}
        # A shingle of one word each: as many as `batch_shingles` sees words.
        for index, words in enumerate(np.diff(batch_shingles(texts, 1).offsets).tolist()):
            if words >= config.ngram:
                sizes.setdefault(config.ngram, []).append(index)
            elif config.short_queries == "whole" and words >= _SHORTEST_WHOLE:
                self.counts["compared_whole"] += 1
                sizes.setdefault(words, []).append(index)
            else:
                self.counts["skipped_short"] += 1
        return sizes


def _benchmark_names(paths: Sequence[Path]) -> dict[Path, str]:
    """`mmlu` for mmlu.test.jsonl; `mmlu/test`, `gsm/test` for mmlu/test.jsonl, gsm/test.jsonl."""
    same: dict[str, list[Path]] = {}
    for path in paths:
        same.setdefault(row_stem(path), []).append(path.resolve().parent)
    names = {}
    for path in paths:
        stem = row_stem(path)
        inside = path.resolve().parent.relative_to(os.path.commonpath(same[stem]))
        names[path] = shown_path(inside / stem)
    return names


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if is_parquet(path):
        raise DataError("queries are read from JSONL only", where=path)
    for number, line in enumerate(read_lines(path), start=1):
        if isinstance(line, (TooLong, Broken)):
            raise DataError(f"line {number}: {line.reason}", where=path, fix="Mend the file.")
        if not line or line.isspace():
            continue
        row = parse_json(line)
        if not isinstance(row, dict):
            why = str(row) if isinstance(row, BadRow) else "not a JSON object"
            raise DataError(f"line {number}: {why}", where=path, fix="Mend the file.")
        yield number, row


def _texts(row: dict[str, Any], keys: Sequence[str]) -> Iterator[str]:
    for key in keys:
        value = row.get(key)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text.strip():
                yield text
