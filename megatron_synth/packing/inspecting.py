"""Look into an indexed dataset: documents, windows and where they come from."""

import dataclasses
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_synth.config import DataError
from megatron_synth.packing.beside import SideTable
from megatron_synth.packing.reader import IndexedReader
from megatron_synth.tokens import Tokenizer

_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


def printable(text: str) -> str:
    """`text` on one line, harmless to a terminal: controls, invisible signs and bidi escaped."""
    return "".join(
        c if unicodedata.category(c) not in _HIDDEN else c.encode("unicode_escape").decode()
        for c in text
    )


def facts(reader: IndexedReader) -> dict[str, Any]:
    """What the `.idx` says of a dataset, ready for JSON."""
    several = empty = longest = 0
    for block in reader.blocks():
        longest = max(longest, int(block.lengths.max(initial=0)))
        if block.sequences is not None:
            several += int(np.count_nonzero(block.sequences > 1))
            empty += int(np.count_nonzero(block.sequences == 0))
    return {
        "prefix": str(reader.prefix),
        "dtype": reader.dtype.name,
        "documents": reader.documents,
        "sequences": reader.sequences,
        "tokens": reader.tokens,
        "longest_sequence": longest,
        "documents_without_sequence": empty,
        "documents_of_several_sequences": several,
        "multimodal": reader.modes is not None,
        "provenance": reader.paths.provenance.is_file(),
        "info": reader.paths.info.is_file(),
    }


@dataclass(frozen=True)
class ShownDocument:
    """A document, or the part of one that a window holds.

    Attributes:
        document: Its number.
        offset: First token shown, counted inside the document.
        ids: The ids shown.
        sequences: Tokens of each sequence of the whole document.
        text: The ids decoded, where a tokenizer was given.
        provenance: Its row of the side table, where there is one.
    """

    document: int
    offset: int
    ids: list[Any]
    sequences: list[int]
    text: str | None
    provenance: dict[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)


def show(
    reader: IndexedReader, first: int, last: int, tokenizer: Tokenizer | None
) -> list[ShownDocument]:
    """Documents `first` to `last` - 1.

    Raises:
        DataError: There are no such documents, or the ids are not of this tokenizer.
    """
    if not 0 <= first < last <= reader.documents:
        raise DataError(
            f"no documents {first:,} to {last - 1:,}: the dataset has {reader.documents:,}",
            where=reader.prefix,
            fix="Documents count from 0; A:B shows A to B - 1.",
        )
    return _pieces(reader, first, last, 0, reader.tokens, tokenizer)


def window(
    reader: IndexedReader, start: int, length: int, tokenizer: Tokenizer | None
) -> tuple[str | None, list[ShownDocument]]:
    """Text of tokens `start` to `start + length` - 1 of the `.bin`, and the documents in it.

    Raises:
        DataError: It reaches past the end, or the ids are not of this tokenizer.
    """
    if start < 0 or length < 1 or start + length > reader.tokens:
        raise DataError(
            f"no tokens {start:,} to {start + length - 1:,}: the dataset has {reader.tokens:,}",
            where=reader.prefix,
            fix="Tokens count from 0, in the order of the .bin.",
        )
    end = start + length
    first, last = reader.document_at(start), reader.document_at(end - 1) + 1
    text = None if tokenizer is None else decode(reader, reader.ids(start, end), tokenizer)
    pieces = _pieces(reader, first, last, start, end, tokenizer)
    return text, [piece for piece in pieces if piece.ids]


def decode(reader: IndexedReader, ids: NDArray[Any], tokenizer: Tokenizer) -> str:
    """Text of ids, control tokens spelled out.

    Raises:
        DataError: They are no ids of this tokenizer.
    """
    if reader.dtype.kind == "f":
        raise DataError(f"holds {reader.dtype.name} values, not token ids", where=reader.prefix)
    wrong = ids[(ids < 0) | (ids >= tokenizer.vocab_size)]
    if wrong.size:
        raise DataError(
            f"holds token {int(wrong[0])}, but the tokenizer has 0 to {tokenizer.vocab_size - 1}",
            where=reader.prefix,
            fix="Give the tokenizer that packed it.",
        )
    return tokenizer.decode(ids.tolist(), keep_special=True)


def count_methods(pieces: list[ShownDocument]) -> dict[str, int]:
    """Tokens of a window by method; documents without provenance count as `unknown`."""
    found: Counter[str] = Counter()
    for piece in pieces:
        found[str((piece.provenance or {}).get("method") or "unknown")] += len(piece.ids)
    return dict(found)


def _pieces(
    reader: IndexedReader,
    first: int,
    last: int,
    start: int,
    end: int,
    tokenizer: Tokenizer | None,
) -> list[ShownDocument]:
    """The part of documents `first` to `last` - 1 inside tokens `start` to `end` - 1."""
    rows: list[dict[str, Any]] = []
    if reader.paths.provenance.is_file():
        rows = SideTable(reader.paths.provenance, reader.documents).rows(first, last)
    found = []
    for number in range(first, last):
        begin, stop = reader.span(number)
        low, high = max(begin, start), max(start, min(stop, end))
        ids = reader.ids(low, high)
        sequences = reader.sequences_of(number)
        found.append(
            ShownDocument(
                number,
                low - begin,
                ids.tolist(),
                reader.lengths[sequences.start : sequences.stop].tolist(),
                None if tokenizer is None else decode(reader, ids, tokenizer),
                rows[number - first] if rows else None,
            )
        )
    return found
