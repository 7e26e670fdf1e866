"""Near-duplicate pairs: two documents of which some 13-token shingle occurs in both."""

from collections.abc import Callable, Sequence

import numpy as np

from megatron_synth.corpus.shingles import batch_shingles

SharesText = Callable[[int, int], bool]
"""Whether two documents, given by number, share a shingle."""


def shingle_test(texts: Sequence[str]) -> SharesText:
    """A fast pair test for a fixed list of texts.

    Every text is hashed once, and only shingles that occur in at least two texts are kept: most
    texts are left with none, so a pair costs well under a microsecond. Memory: about 40 bytes a
    word while hashing, then 60 bytes for each shared shingle.
    """
    shingles = batch_shingles(texts)
    owner = np.repeat(np.arange(len(texts)), np.diff(shingles.offsets))
    order = np.lexsort((owner, shingles.hashes))
    hashes, owner = shingles.hashes[order], owner[order]
    again = np.zeros(len(hashes), bool)
    again[1:] = hashes[1:] == hashes[:-1]
    run = np.cumsum(~again) - 1
    new_owner = again.copy()
    new_owner[1:] &= owner[1:] != owner[:-1]
    shared = np.bincount(run, weights=new_owner)[run] > 0 if len(run) else new_owner
    found: dict[int, set[int]] = {}
    for document, number in zip(owner[shared].tolist(), run[shared].tolist(), strict=True):
        found.setdefault(document, set()).add(number)
    nothing: set[int] = set()

    def shares(first: int, second: int) -> bool:
        return not found.get(first, nothing).isdisjoint(found.get(second, nothing))

    return shares
