"""Near-duplicates: MinHash-LSH over word shingles, in a stream, the first occurrence kept.

A text's set is the hashes of its runs of `shingle_words` words, normalised as in `shingles.py`
(lower case, no punctuation, no digits). Its MinHash signature goes into bands (Broder 1997;
Leskovec et al., Mining of Massive Datasets, 3.4); texts that share a band are candidates, and a
candidate counts only where the Jaccard similarity estimated from both whole signatures reaches
the threshold.
The estimate's standard error is sqrt(s (1 - s) / permutations): 0.035 at 0.8 with 128. Estimated
and not exact, because exact sets would cost 8 bytes a word of everything kept.

The library is rensa, not datasketch: at the same setting on 13.5 MB of real text it takes a third
of the time, shingling included, and a third of the memory a document, and drops as many
(docs/benchmarks.md). The bands are ours to set: the defaults of both libraries missed 6 to 8 of 81
known near-duplicates there. Its full-set R-MinHash is used, never the faster rho sketch: that one
depends on the order of the words and on a text's length.

Equal texts in equal order with equal seed give the same verdicts in every process.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import Field

from megatron_synth.config import Config
from megatron_synth.corpus.shingles import batch_shingles, normalise

_FOUND = 0.99
_HASH_BYTES = 8


class NearDuplicatesConfig(Config):
    """When a text counts as a near-duplicate of an earlier one."""

    threshold: float = Field(default=0.8, gt=0, le=1)
    """Least Jaccard similarity of the two sets of shingles, as estimated from the signatures."""
    permutations: int = Field(default=128, ge=16, le=1024, multiple_of=16)
    """Slots of a signature: more are more exact, and cost time and 4 bytes a document each."""
    shingle_words: int = Field(default=5, ge=1, le=50)
    """Words in a shingle."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the permutations."""


class NearDuplicates:
    """The signatures of all kept texts; memory is about 4 KB a document at the defaults.

    Texts of fewer words than a shingle count as one shingle, the whole normalised text; texts
    without any word are near-duplicates of nothing.
    """

    def __init__(self, config: NearDuplicatesConfig) -> None:
        from rensa import RMinHashDeduplicator

        self._config = config
        self._index: Any = RMinHashDeduplicator(
            config.threshold,
            config.permutations,
            True,
            bands_for(config.threshold, config.permutations),
            config.seed,
        )
        self._names: list[str] = []

    def signatures(self, texts: Sequence[str]) -> list[Any]:
        """Signatures of a batch, None for a text without words; about 25 MB/s."""
        from rensa import RMinHash

        sets = batch_shingles(texts, self._config.shingle_words)
        tokens = [
            _as_tokens(sets[i]) if len(sets[i]) else _whole(text) for i, text in enumerate(texts)
        ]
        made = RMinHash.from_token_sets(tokens, self._config.permutations, self._config.seed)
        return [s if t else None for s, t in zip(made, tokens, strict=True)]

    def find(self, signature: Any) -> str | None:
        """Name of the first text added that `signature` is a near-duplicate of, or None."""
        if signature is None or not self._index.is_duplicate("", signature):
            return None
        return self._names[min(map(int, self._index.get_duplicates(signature)))]

    def add(self, name: str, signature: Any) -> None:
        """Let later texts be compared with this one, which `find` found to be new."""
        if signature is not None:
            self._index.add(str(len(self._names)), signature)
            self._names.append(name)


def bands_for(threshold: float, permutations: int) -> int:
    """Fewest bands that make a pair at the threshold a candidate with probability 0.99.

    With b bands of r slots a pair of similarity s shares a band with probability
    1 - (1 - s^r)^b. Too many candidates cost time only, since each is verified.
    """
    for bands in range(1, permutations):
        if permutations % bands == 0:
            rows = permutations // bands
            if 1 - (1 - threshold**rows) ** bands >= _FOUND:
                return bands
    return permutations


def _as_tokens(hashes: NDArray[np.uint64]) -> list[bytes]:
    data = hashes.astype("<u8", copy=False).tobytes()
    return [data[i : i + _HASH_BYTES] for i in range(0, len(data), _HASH_BYTES)]


def _whole(text: str) -> list[bytes]:
    words = " ".join(normalise(text).split())
    return [xxhash.xxh3_64_digest(words.encode())] if words else []
