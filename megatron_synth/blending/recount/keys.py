"""Texts as 64-bit numbers: ids of many million documents without a Python object for each."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_synth.runs.compiling import compiled

UInt64s = NDArray[np.uint64]


def text_keys(texts: Any) -> UInt64s:
    """A 64-bit hash of each text (FNV-1a, finished by splitmix64's mixer).

    Among 60 million texts two share a hash with probability 1e-4.

    Args:
        texts: An Arrow array of strings; where one is null the number means nothing.

    Returns:
        uint64[n].
    """
    import pyarrow as pa

    wide = texts.cast(pa.large_string())
    _, offsets, data = wide.buffers()
    if len(wide) == 0 or offsets is None:
        return np.zeros(len(wide), dtype=np.uint64)
    borders = np.frombuffer(offsets, np.int64)[wide.offset : wide.offset + len(wide) + 1]
    letters = np.frombuffer(data if data is not None else b"", np.uint8)
    result: UInt64s = _hash(letters, borders)
    return result


@compiled
def _hash(letters: NDArray[np.uint8], borders: NDArray[np.int64]) -> UInt64s:
    count = len(borders) - 1
    keys = np.empty(count, dtype=np.uint64)
    for text in range(count):
        key = np.uint64(0xCBF29CE484222325)
        for at in range(borders[text], borders[text + 1]):
            key = (key ^ np.uint64(letters[at])) * np.uint64(0x100000001B3)
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        keys[text] = key ^ (key >> np.uint64(31))
    return keys
