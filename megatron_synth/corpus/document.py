"""The document: what every room from here on reads and writes."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Any


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its history (METHODS 1). An organic document has `id`, `text`, `metadata`.

    Attributes:
        id: Unique inside its corpus.
        text: Valid Unicode.
        source_id: The organic document that it came from; SBP: the seed document.
        method: How it was made: `sbp`, `rephrase_hq`, …
        generation: 0 to G-1.
        round: The refresh round that made it.
        generator: Model name and revision, `name@revision`.
        prompt: Prompt name and content hash, `name@hash`.
        seed: Seed of the sampling.
        sampling: Sampling parameters: temperature, top_p, max_tokens, …
        finish_reason: `stop`, `length`, …
        token_counts: For example `{"prompt": 312, "output": 290}`.
        scores: Figures by name, from filters and judges.
        metadata: Anything else that came with the document, such as `package`.
        parts: The texts of a document that is several (a stitched megadoc), in order; `text` is
            these with `PART_BREAK` between them. Packing makes each a sequence with its own EOS.
    """

    id: str
    text: str
    source_id: str | None = None
    method: str | None = None
    generation: int | None = None
    round: int | None = None
    generator: str | None = None
    prompt: str | None = None
    seed: int | None = None
    sampling: Mapping[str, Any] | None = None
    finish_reason: str | None = None
    token_counts: Mapping[str, int] | None = None
    scores: Mapping[str, float] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] | None = None


PART_BREAK = "\n\n"
"""What stands between the parts of a document in its `text`, for readers that know no parts."""

_MAPPINGS = frozenset({"sampling", "token_counts", "scores", "metadata"})
_INTEGERS = frozenset({"generation", "round", "seed"})
_NAMES = tuple(f.name for f in fields(Document))


class BadRow(ValueError):  # noqa: N818  a row is bad; nothing is wrong with the program
    """A row that is no document; its message is the reason."""


def to_record(document: Document) -> dict[str, Any]:
    """The document as a JSON object, without what is not set."""
    record = {name: getattr(document, name) for name in _NAMES}
    return {k: v for k, v in record.items() if v is not None and not (k == "metadata" and not v)}


def to_row(document: Document) -> dict[str, Any]:
    """The document as a flat Parquet row: mappings become JSON strings."""
    row = {name: getattr(document, name) for name in _NAMES}
    for name in _MAPPINGS:
        row[name] = dump_json(row[name]) if row[name] else None
    return row


def from_record(
    record: object, *, default_id: str, text_column: str = "text", id_column: str = "id"
) -> Document:
    """Read a JSON object or Parquet row.

    Keys that are no field of `Document`, or hold another type than the field of that name, are
    kept in `metadata`: what came with a document is never lost.

    Args:
        record: What JSON or Parquet gave.
        default_id: The id of a row that brings none.
        text_column: The key that holds the text.
        id_column: The key that holds the id, a string or an integer.

    Raises:
        BadRow: Not an object, no text, not a string, NUL characters, a lone surrogate.
    """
    text = read_text(record, text_column)
    assert isinstance(record, dict)
    rest = {name: value for name, value in record.items() if name != text_column}
    values: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    own = rest.pop("metadata", None)
    own = _read_mapping(own)
    if isinstance(own, dict):
        metadata.update(own)
    elif own is not None:
        metadata["metadata"] = own
    identity = rest.pop(id_column, None)
    parts = read_parts(record, text)
    if parts is not None:
        values["parts"] = tuple(parts)
        del rest["parts"]
    for name, value in rest.items():
        read = _read_mapping(value) if name in _MAPPINGS else value
        if name in _NAMES and name not in ("id", "text", "parts") and _fits(name, read):
            values[name] = read
        elif value is not None:
            metadata[name] = value
    return Document(id=_read_id(identity, default_id), text=text, metadata=metadata, **values)


def read_text(record: object, column: str) -> str:
    """The text of a JSON object or Parquet row.

    Raises:
        BadRow: Not an object, no text, not a string, NUL characters, a lone surrogate.
    """
    if not isinstance(record, dict):
        raise BadRow(f"not a JSON object but {_kind(record)}")
    if column not in record:
        raise BadRow(f"no {column!r}")
    text = record[column]
    if not isinstance(text, str):
        raise BadRow(f"{column!r} is {_kind(text)}, not a string")
    check_text(text)
    return text


def read_parts(record: Mapping[str, Any], text: str) -> list[str] | None:
    """The parts of a row with this text; None where it has none, or where they are other texts."""
    parts = record.get("parts")
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        return None
    return parts if parts and PART_BREAK.join(parts) == text else None


def dump_json(content: Any, **options: Any) -> str:
    """JSON of anything that came with a document.

    Dates and the like (from Parquet) become strings, and so do NaN and infinities, which JSON
    cannot hold, and integers of more than 4,300 digits.
    """
    try:
        return _dump(content, **options)
    except RecursionError:  # what was parsed with fewer frames on the stack
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(2 * limit)
        try:
            return _dump(content, **options)
        finally:
            sys.setrecursionlimit(limit)


def _dump(content: Any, **options: Any) -> str:
    try:
        return json.dumps(content, default=str, allow_nan=False, **options)
    except ValueError:
        held = json.loads(json.dumps(content, default=str), parse_constant=str)
        return json.dumps(held, **options)


def check_text(text: str) -> None:
    """Refuse what no tokenizer or file format can hold.

    Raises:
        BadRow: NUL characters or a lone surrogate.
    """
    if "\0" in text:
        raise BadRow("NUL character in the text")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise BadRow("lone surrogate in the text") from None


def _read_id(value: object, default: str) -> str:
    if value is None or isinstance(value, (dict, list, bool)):
        return default
    text = str(value)
    return text if text and _is_clean(text) else default


def _is_clean(text: str) -> bool:
    try:
        check_text(text)
    except BadRow:
        return False
    return True


def _read_mapping(value: object) -> object:
    """Parquet holds mappings as JSON strings; anything else is returned as it is."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _fits(name: str, value: object) -> bool:
    if value is None:
        return True
    if name in _MAPPINGS:
        return isinstance(value, dict)
    if name in _INTEGERS:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return is_integer and -(2**63) <= value < 2**63  # type: ignore[operator]
    return isinstance(value, str) and _is_clean(value)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    if value is None:
        return "null"
    return names.get(
        type(value), "a number" if isinstance(value, (int, float, Decimal)) else "bytes"
    )
