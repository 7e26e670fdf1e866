"""Duplicate@N: the share of N documents that have a near-duplicate among them (SBP, section 4.2).

Near means a Jaccard similarity of at least 0.6 of the sets of 5-word shingles, normalised as in
`shingles.py`; it is estimated from two MinHash signatures of 144 slots (standard error 0.04 at
0.6). Candidates are pairs that share one of 36 bands of 4 slots, which finds a pair at the
threshold with probability 0.99 (`near_duplicates.bands_for`).

`NearDuplicates` answers one text at a time and keeps texts that are new; here all are compared at
the end, so that both of a pair count, and nothing but the signatures is kept: 576 bytes a document
and 18 while comparing. Signatures are rensa's, of the full sets, made of the shingles' hashes as
they are. Time: that of the shingles.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from megatron_synth.corpus.shingles import batch_shingles, normalise
from megatron_synth.runs import Progress, get_logger

THRESHOLD = 0.6
SHINGLE_WORDS = 5
_BANDS = 36
_BAND_SLOTS = 4
_SLOTS = _BANDS * _BAND_SLOTS
_MOST_COMPARED = 256
_CHUNK = 16_384

_log = get_logger(__name__)


@dataclass(frozen=True)
class DuplicateCount:
    """What was found.

    Attributes:
        documents: Among how many: N.
        with_duplicate: Documents that have a near-duplicate among the others.
        repeats: Documents that have one before them: what would go if each were kept once.
    """

    documents: int
    with_duplicate: int
    repeats: int


class DuplicateSample:
    """Signatures of a uniform sample of all texts that are added.

    Texts of fewer words than a shingle are one shingle, the whole text; texts without any word
    are near-duplicates of nothing.

    Args:
        limit: N: at most so many are kept, drawn uniformly (reservoir sampling, Vitter 1985,
            algorithm R).
        seed: Of the draws; the same texts in the same order give the same sample.
    """

    def __init__(self, limit: int, seed: int = 0) -> None:
        self._limit = limit
        self._random = np.random.default_rng(seed)
        self._seen = 0
        self._chunks: list[NDArray[np.uint32]] = []
        self._wordless: set[int] = set()

    @property
    def seen(self) -> int:
        """Texts that were added."""
        return self._seen

    @property
    def kept(self) -> int:
        """Texts in the sample."""
        return min(self._seen, self._limit)

    def add(self, texts: Sequence[str]) -> None:
        """Add a block of texts; about 40 MB/s a core."""
        slots: dict[int, str] = {}  # a later text may take the place of an earlier one
        for text in texts:
            slot = self._seen
            self._seen += 1
            if slot >= self._limit:
                slot = int(self._random.integers(self._seen))
            if slot < self._limit:
                slots.pop(slot, None)
                slots[slot] = text
        if not slots:
            return
        signatures, wordless = _signatures(list(slots.values()))
        for slot, signature, empty in zip(slots, signatures, wordless, strict=True):
            chunk, row = divmod(slot, _CHUNK)
            if chunk == len(self._chunks):
                self._chunks.append(np.empty((_CHUNK, _SLOTS), np.uint32))
            self._chunks[chunk][row] = signature
            self._wordless.discard(slot)
            if empty:
                self._wordless.add(slot)

    def count(self, among: int | None = None, progress: Progress | None = None) -> DuplicateCount:
        """Compare all; this ends the sample, whose memory is used up.

        Args:
            among: Compare only so many of them, drawn uniformly: a share grows with the number of
                documents, so two corpora are comparable at the same one. The sample stays.
            progress: Counts bands.
        """
        from megatron_synth.corpus import duplicate_kernels

        documents = self.kept
        kept = np.ones(documents, bool)
        if among is not None and among < documents:
            kept[np.random.default_rng(0).permutation(documents)[among:]] = False
            documents = among
        kept[list(self._wordless)] = False
        signatures = self._take_rows(kept, free=among is None)
        has_one = np.zeros(len(signatures), bool)
        repeats = np.zeros(len(signatures), bool)
        keys = np.empty(len(signatures), np.uint64)
        needed = int(np.ceil(THRESHOLD * _SLOTS))
        cut = 0
        if progress is not None:
            progress.phase("comparing documents", _BANDS, "bands")
        for band in range(_BANDS):
            duplicate_kernels.band_keys(signatures, band * _BAND_SLOTS, _BAND_SLOTS, keys)
            order = np.argsort(keys, kind="stable")
            cut += duplicate_kernels.mark_band(
                signatures, keys, order, needed, _MOST_COMPARED, has_one, repeats
            )
            if progress is not None:
                progress.update(band + 1)
        if cut:
            _log.info("%d comparisons of documents ended after %d others", cut, _MOST_COMPARED)
        return DuplicateCount(documents, int(has_one.sum()), int(repeats.sum()))

    def _take_rows(self, kept: NDArray[np.bool_], *, free: bool) -> NDArray[np.uint32]:
        """All kept signatures in one matrix; with `free`, each chunk goes once it is copied."""
        signatures = np.empty((int(kept.sum()), _SLOTS), np.uint32)
        end = 0
        for number in range(len(self._chunks)):
            chunk = kept[number * _CHUNK : (number + 1) * _CHUNK]
            rows = self._chunks[number][: len(chunk)][chunk]
            signatures[end : end + len(rows)] = rows
            end += len(rows)
            if free:
                self._chunks[number] = np.empty((0, _SLOTS), np.uint32)
        return signatures


def _signatures(texts: Sequence[str]) -> tuple[NDArray[np.uint32], list[bool]]:
    """MinHash signatures uint32 [texts, slots], and which texts have no word."""
    from rensa import RMinHash

    sets = batch_shingles(texts, SHINGLE_WORDS)
    counts = np.diff(sets.offsets)
    short = np.flatnonzero(counts == 0)
    hashes, wordless = sets.hashes, [False] * len(texts)
    if len(short):
        words = [" ".join(normalise(texts[i]).split()) for i in short]
        for place, text in zip(short.tolist(), words, strict=True):
            wordless[place] = not text
        whole = np.array([xxhash.xxh3_64_intdigest(text.encode()) for text in words], np.uint64)
        hashes = np.insert(hashes, sets.offsets[short], whole)
        counts[short] = 1
    offsets = np.zeros(len(texts) + 1, np.uint64)
    np.cumsum(counts, out=offsets[1:])
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, _SLOTS, 0)
    return np.array(matrix.to_rows(), np.uint32), wordless
