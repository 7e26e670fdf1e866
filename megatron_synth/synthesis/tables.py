"""Documents as Arrow tables: a shard's product in parts of bounded size, which stages hand on."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_synth.corpus import Document
from megatron_synth.corpus.document import to_row
from megatron_synth.runs import atomic_write
from megatron_synth.synthesis.places import Places
from megatron_synth.synthesis.shard import Outcome

_INTEGERS = {"generation", "round", "seed"}
COLUMNS = tuple(name for name in to_row(Document("", "")) if name != "parts")  # one text each
SCHEMA = pa.schema(
    [(name, pa.int64() if name in _INTEGERS else pa.string()) for name in COLUMNS]
    + [("source_text", pa.string())]
)
"""Fields of `Document`, mappings as JSON strings, and the text that it was made from."""

# A part passes through Ray's object store a few times: it has to stay well below its size, and
# still be large enough that what a task costs (milliseconds) does not count.
_PART_DOCUMENTS = 2000
_PART_CHARACTERS = 16 << 20


def write_parts(outcomes: Iterable[Outcome], places: Places, shard: int) -> int:
    """Write documents to `places.table(shard, 0)`, `(shard, 1)`, …; how many parts there are.

    One part is in memory at a time. What goes into which part depends on the documents alone, so
    that a part that was written before a kill is written again as it was. There is one at least,
    which may be empty.
    """
    number = 0
    for number, rows in enumerate(_parts(outcomes)):
        _write(places.table(shard, number), rows)
    return number + 1


def read_part(path: Path) -> pa.Table:
    """A part as `write_parts` wrote it."""
    return pq.read_table(path, schema=SCHEMA)


def _parts(outcomes: Iterable[Outcome]) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    characters = 0
    for outcome in outcomes:
        if len(rows) >= _PART_DOCUMENTS or characters >= _PART_CHARACTERS:
            yield rows
            rows, characters = [], 0
        rows.append({**to_row(outcome.document), "source_text": outcome.source_text})
        characters += len(outcome.document.text) + len(outcome.source_text)
    yield rows


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_write(path, "wb") as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file, compression="zstd")
