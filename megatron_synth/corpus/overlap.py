"""How much of each validation document also stands in training documents."""

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from megatron_synth.corpus.shingles import Hashes, batch_shingles, normalise


class Overlap:
    """Counts which shingles of a few documents occur in many others that stream by.

    A document of fewer than 13 words counts as one shingle, its whole normalised text. Memory:
    17 bytes a shingle of the few documents, whatever passes.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._marks = [np.unique(marks) for marks in _marks(texts)]
        joined = np.concatenate([*self._marks, np.empty(0, dtype=np.uint64)])
        self._known = np.unique(joined)
        self._seen = np.zeros(len(self._known), dtype=bool)

    def observe(self, texts: Sequence[str]) -> None:
        """Let training documents pass."""
        if not len(self._known):
            return
        hashes = np.concatenate([*_marks(texts), np.empty(0, dtype=np.uint64)])
        places = np.searchsorted(self._known, hashes)
        places[places == len(self._known)] = 0
        self._seen[places[self._known[places] == hashes]] = True

    def shares(self) -> NDArray[np.float64]:
        """For each document, the share of its distinct shingles that have passed, 0 to 1."""
        return np.array([self._share(marks) for marks in self._marks], dtype=np.float64)

    def repeats_earlier(self, limit: float) -> NDArray[np.bool_]:
        """Which documents share more than `limit` of their shingles with an earlier one kept."""
        kept: set[int] = set()
        repeats = np.zeros(len(self._marks), dtype=bool)
        for index, marks in enumerate(self._marks):
            values = marks.tolist()
            common = sum(value in kept for value in values)
            repeats[index] = common > limit * len(values)
            if not repeats[index]:
                kept.update(values)
        return repeats

    def _share(self, marks: Hashes) -> float:
        return float(self._seen[np.searchsorted(self._known, marks)].mean()) if len(marks) else 0.0


def _marks(texts: Sequence[str]) -> list[Hashes]:
    sets = batch_shingles(texts)
    return [
        sets[i] if len(sets[i]) else np.array([_whole(text)], dtype=np.uint64)
        for i, text in enumerate(texts)
    ]


def _whole(text: str) -> int:
    return xxhash.xxh3_64_intdigest(" ".join(normalise(text).split()).encode())
