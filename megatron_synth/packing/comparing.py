"""Compare two indexed datasets, and name the first difference."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_synth.packing.inspecting import decode
from megatron_synth.packing.reader import IndexedReader
from megatron_synth.tokens import Tokenizer

_CONTEXT = 8


@dataclass(frozen=True)
class FirstDifference:
    """The first document in which two datasets differ.

    Attributes:
        document: Its number.
        what: `ids`, `length`, `sequences`, `modes`, or `missing` where one dataset has ended.
        token: First token that differs, counted inside the document.
        start: First token of the ids shown, counted inside the document.
        ids_a, ids_b: Ids from `start` to a few after `token`; empty past the end.
        text_a, text_b: Decoded, where a tokenizer was given.
    """

    document: int
    what: str
    token: int
    start: int
    ids_a: list[Any]
    ids_b: list[Any]
    text_a: str | None
    text_b: str | None


@dataclass(frozen=True)
class Comparison:
    """How two datasets differ.

    Attributes:
        facts: dtype and counts that differ: name to (of A, of B).
        first: The first document that differs, values compared whatever the dtypes.
    """

    facts: dict[str, tuple[Any, Any]]
    first: FirstDifference | None

    @property
    def identical(self) -> bool:
        """Whether the `.bin` and `.idx` hold the same."""
        return not self.facts and self.first is None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        first = None if self.first is None else dataclasses.asdict(self.first)
        return {"identical": self.identical, "facts": self.facts, "first": first}


def compare(a: IndexedReader, b: IndexedReader, tokenizer: Tokenizer | None = None) -> Comparison:
    """Compare `.bin` and `.idx`, block by block; side tables and infos are not looked at.

    Raises:
        DataError: The ids at the difference are not of this tokenizer.
    """
    facts = {
        name: (one, other)
        for name, one, other in (
            ("dtype", a.dtype.name, b.dtype.name),
            ("documents", a.documents, b.documents),
            ("sequences", a.sequences, b.sequences),
            ("tokens", a.tokens, b.tokens),
            ("multimodal", a.modes is not None, b.modes is not None),
        )
        if one != other
    }
    common = min(a.documents, b.documents)
    for block in a.blocks(0, common):
        other = b.block(block.first, block.first + block.documents)
        parts = zip(block[2:], other[2:], strict=True)
        if not all(_same(one, two) for one, two in parts):
            for number in range(block.first, block.first + block.documents):
                found = _difference(a, b, number, tokenizer)
                if found is not None:
                    return Comparison(facts, found)
    first = None
    if a.documents != b.documents:
        first = _at(a, b, common, "missing", 0, tokenizer)
    return Comparison(facts, first)


def _same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.array_equal(one, other))


def _difference(
    a: IndexedReader, b: IndexedReader, number: int, tokenizer: Tokenizer | None
) -> FirstDifference | None:
    one, other = a.document(number), b.document(number)
    size = min(len(one), len(other))
    wrong = np.flatnonzero(one[:size] != other[:size])
    if wrong.size:
        return _at(a, b, number, "ids", int(wrong[0]), tokenizer)
    if len(one) != len(other):
        return _at(a, b, number, "length", size, tokenizer)
    mine, theirs = a.block(number, number + 1), b.block(number, number + 1)
    if not np.array_equal(mine.lengths, theirs.lengths):
        return _at(a, b, number, "sequences", 0, tokenizer)
    if mine.modes is None or theirs.modes is None or np.array_equal(mine.modes, theirs.modes):
        return None
    return _at(a, b, number, "modes", 0, tokenizer)


def _at(
    a: IndexedReader,
    b: IndexedReader,
    number: int,
    what: str,
    token: int,
    tokenizer: Tokenizer | None,
) -> FirstDifference:
    start = max(0, token - _CONTEXT)
    one, other = (
        r.document(number)[start : token + _CONTEXT + 1] if number < r.documents else r.ids(0, 0)
        for r in (a, b)
    )
    return FirstDifference(
        number,
        what,
        token,
        start,
        one.tolist(),
        other.tolist(),
        None if tokenizer is None else decode(a, one, tokenizer),
        None if tokenizer is None else decode(b, other, tokenizer),
    )
