"""Is every window what it should be? Windows of one corpus, many at a time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_synth.blending.recount.book import Book, Pieces

Int64s = NDArray[np.int64]
Samples = Sequence[Mapping[str, Any]]
Report = Callable[[NDArray[np.bool_], str], None]
"""Takes which windows are wrong, bool[windows], and what is wrong with them."""

_COMMON = {"tokens": "int64", "labels": "int64", "loss_mask": "float32", "position_ids": "int64"}


def stacked(samples: Samples, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The samples' tensors under `names`, as arrays [samples, ...].

    Raises:
        KeyError, RuntimeError, TypeError: A sample lacks one, or they differ in shape.
    """
    return {name: torch.stack([sample[name] for sample in samples]).numpy() for name in names}


def numbers(samples: Samples, name: str) -> Int64s:
    """The samples' integers under `name`, int64[samples]."""
    return np.array([int(sample[name]) for sample in samples], dtype=np.int64)


def names_of(attention: str) -> tuple[str, ...]:
    """What a sample holds besides `dataset_id` and `max_seqlen`: tensors."""
    return (*_COMMON, "cu_seqlens") if attention == "document" else tuple(_COMMON)


def wrong_layout(
    samples: Samples, arrays: Mapping[str, NDArray[Any]], attention: str
) -> str | None:
    """What is wrong with the samples' keys, dtypes and shapes; None if nothing."""
    length = arrays["tokens"].shape[1]
    wanted = {name: (kind, (length,)) for name, kind in _COMMON.items()}
    keys = {*wanted, "dataset_id"}
    if attention == "document":
        wanted["cu_seqlens"] = ("int32", (length + 1,))
        keys |= {"cu_seqlens", "max_seqlen"}
    for sample in samples:
        if sample.keys() != keys:
            return f"a sample holds {sorted(sample)}, not {sorted(keys)}"
    for name, (kind, shape) in wanted.items():
        array = arrays[name]
        if (array.dtype.name, array.shape[1:]) != (kind, shape):
            return f"{name} is {array.dtype.name}{list(array.shape[1:])}, not {kind}{list(shape)}"
    return None


def check_text(book: Book, pieces: Pieces, windows: int, report: Report) -> None:
    """Documents follow each other whole, are meant, and stand in their order."""
    joint = pieces.window[1:] == pieces.window[:-1]
    ended = pieces.end[:-1] == book.starts[pieces.document[:-1] + 1]
    began = pieces.begin[1:] == book.starts[pieces.document[1:]]

    def at(wrong: NDArray[np.bool_], where: Int64s, what: str) -> None:
        if wrong.any():
            rows = np.zeros(windows, dtype=bool)
            rows[where[wrong]] = True
            report(rows, what)

    at(joint & ~(ended & began), pieces.window[1:], "a label is not the token that follows")
    if book.meant is not None:
        strange = ~book.meant[pieces.document]
        at(strange, pieces.window, "holds a document outside the selection")
    if book.place is not None:
        place = book.place[pieces.document]
        astray = joint & (place[1:] != place[:-1] + 1)
        at(astray, pieces.window[1:], "documents do not follow the given order")


def check_samples(
    book: Book,
    text: Int64s,
    pieces: Pieces,
    arrays: Mapping[str, NDArray[Any]],
    longest: Int64s | None,
    report: Report,
) -> None:
    """What was served against what the positions say.

    Args:
        book: The corpus.
        text: Positions, int64[windows, S + 1].
        pieces: The same, taken apart.
        arrays: The samples' tensors, [windows, ...] each.
        longest: `max_seqlen` of each window, where documents do not see each other.
        report: Told which windows are wrong.
    """
    ids = book.tokens[text]

    def want(name: str, expected: NDArray[Any] | int, what: str) -> None:
        wrong = arrays[name] != expected
        if wrong.any():
            report(wrong.any(axis=1), what)

    want("tokens", ids[:, :-1], "the tokens served are not those of the .bin")
    want("labels", ids[:, 1:], "the labels served are not those of the .bin")
    want("loss_mask", 1, "loss_mask is not 1 everywhere")
    positions = np.arange(text.shape[1] - 1)
    if longest is not None:
        begins, lengths, positions = _documents(text.shape, pieces)
        want("cu_seqlens", begins, "cu_seqlens are not the documents' begins")
        report(longest != lengths, "max_seqlen is not the longest document's")
    want("position_ids", positions, "position_ids are wrong")


def _documents(shape: tuple[int, ...], pieces: Pieces) -> tuple[Int64s, Int64s, Int64s]:
    """cu_seqlens [windows, S + 1], max_seqlen [windows] and position_ids [windows, S]."""
    windows, width = shape
    length = width - 1
    first = np.flatnonzero(np.diff(pieces.window, prepend=-1))
    ordinal = np.arange(len(pieces.window)) - np.repeat(
        first, np.diff(first, append=len(pieces.window))
    )
    begins = np.full((windows, width), length, dtype=np.int64)
    begins[pieces.window, ordinal] = pieces.offset  # one that begins at S stands there as S
    sizes = np.minimum(pieces.end - pieces.begin, length - pieces.offset)
    starts = np.repeat(pieces.offset, pieces.end - pieces.begin).reshape(windows, width)
    return begins, np.maximum.reduceat(sizes, first), (np.arange(width) - starts)[:, :-1]
