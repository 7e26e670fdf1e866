"""Permutations of [0, size) that are computed, not stored: a keyed bijection.

Numbers are written as pairs (left, right) in [0, a) x [0, b) with a*b >= size, and mixed by an
alternating additive Feistel network (Black and Rogaway, Ciphers with Arbitrary Finite Domains,
2002, section "generalized Feistel", with cycle walking). a*b exceeds size by less than a, about
its square root, so a value is almost never walked twice. All arithmetic is on unsigned 64-bit
integers.
"""

import math

import numpy as np
import xxhash
from numpy.typing import NDArray

from megatron_synth.blending import kernels

_ROUNDS = 12  # with 8 the 120 orders of 5 documents were measurably uneven; from 10 on they are not
_MASK = (1 << 64) - 1
_MIX_1 = 0xBF58476D1CE4E5B9  # multipliers of splitmix64's finalizer
_MIX_2 = 0x94D049BB133111EB
_STEP = 0x9E3779B97F4A7C15


def derive_key(*parts: str | int) -> int:
    """A 64-bit key for what `parts` name, for example (seed, corpus, "windows", epoch)."""
    return xxhash.xxh3_64_intdigest("\0".join(map(str, parts)).encode())


class Bijection:
    """A permutation of [0, size), drawn by `key`; no memory, random access.

    Args:
        size: 1 to 2**62.
        key: 64 bits; another key gives another permutation.

    Attributes:
        compiled: The same, for the compiled loops.
    """

    def __init__(self, size: int, key: int) -> None:
        assert 1 <= size <= 1 << 62, f"size {size}"
        self.size = size
        left = math.isqrt(size - 1) + 1  # ceil of the square root
        rounds = np.array([_splitmix(key + r * _STEP) for r in range(_ROUNDS)], dtype=np.uint64)
        self.compiled = kernels.Key(
            np.uint64(size), np.uint64(left), np.uint64(-(-size // left)), rounds
        )

    def __call__(self, values: NDArray[np.integer]) -> NDArray[np.int64]:
        """Map each of `values` (any shape, all in [0, size)) to its place; int64, same shape."""
        mapped = np.array(values, dtype=np.uint64).ravel()
        kernels.permute(mapped, self.compiled)
        return mapped.astype(np.int64).reshape(values.shape)


def _splitmix(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)
