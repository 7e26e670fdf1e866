"""13-token shingles: do two texts share a passage, does one text repeat itself?

A text is normalised (lower case; punctuation, symbols and digits become spaces), split at white
space, and each run of 13 words is hashed to 64 bits. Texts of fewer than 13 words have none
(METHODS 1, SBP steps 3 and 5). In scripts that put no space between words (Chinese, Japanese,
Thai, Lao, Khmer, Myanmar), each letter, with the marks on it, counts as a word. All texts of a
batch are hashed together by numpy, so that short texts cost no more than long ones.

A word's hash is a polynomial over its bytes, taken from one running sum over the whole batch: a
byte at position j weighs P^j (mod 2^64), and a word that starts at s is brought back to s = 0 by
P^-s, which exists because P is odd. A shingle's hash combines its 13 mixed word hashes the same
way, with fixed weights.
"""

import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

SHINGLE_TOKENS = 13

Hashes = NDArray[np.uint64]

_PRIME = 0x9E3779B97F4A7C15 | 1
_WEIGHT = 0xD6E8FEB86659FD93
_MASK = (1 << 64) - 1
_BLOCK = 1 << 20
_SPACE = 0x20


@dataclass(frozen=True)
class ShingleSets:
    """Shingles of a batch of texts.

    Attributes:
        hashes: uint64[n], in the order of the texts and, inside a text, of its words.
        offsets: int64[texts + 1]; text i has `hashes[offsets[i]:offsets[i + 1]]`.
    """

    hashes: Hashes
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Hashes:
        return self.hashes[self.offsets[index] : self.offsets[index + 1]]


def shares_shingle(left: str, right: str) -> bool:
    """Whether some 13-token shingle occurs in both texts: a near-duplicate pair."""
    sets = batch_shingles([left, right])
    return have_common(sets[0], sets[1])


def repeats_shingle(text: str) -> bool:
    """Whether some 13-token shingle occurs twice in `text`: a text that repeats itself."""
    return has_repeat(shingle_hashes(text))


def shingle_hashes(text: str) -> Hashes:
    """Hashes of the text's shingles, in order: uint64[max(0, words - 12)]."""
    return batch_shingles([text]).hashes


def have_common(left: Hashes, right: Hashes) -> bool:
    """Whether two arrays of hashes share a value; they need not be sorted."""
    if len(left) > len(right):
        left, right = right, left
    if not len(left):
        return False
    return bool(np.isin(left, right).any())


def has_repeat(hashes: Hashes) -> bool:
    """Whether a value stands twice in `hashes`."""
    ordered = np.sort(hashes)
    return bool((ordered[1:] == ordered[:-1]).any())


def batch_shingles(texts: Sequence[str], size: int = SHINGLE_TOKENS) -> ShingleSets:
    """Shingles of `size` words of each text; memory is about 60 bytes a character of a block.

    Long batches are worked off in blocks of about 1 MB of text.
    """
    pieces: list[Hashes] = []
    counts = np.zeros(len(texts) + 1, dtype=np.int64)
    start = characters = 0
    for position, text in enumerate(texts):
        characters += len(text)
        if characters >= _BLOCK or position + 1 == len(texts):
            hashes, per_text = _hash_block(texts[start : position + 1], size)
            pieces.append(hashes)
            counts[start + 1 : position + 2] = per_text
            start, characters = position + 1, 0
    joined = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint64)
    return ShingleSets(joined, np.cumsum(counts))


def normalise(text: str) -> str:
    """Lower case, with one space for each punctuation mark, symbol, digit or white space.

    Runs of spaces are left: only the words between them count.
    """
    lowered = text.lower()
    if not lowered.isascii():
        lowered = _blank_others(lowered)
    return lowered.translate(_ASCII_SEPARATORS)


def _hash_block(texts: Sequence[str], size: int) -> tuple[Hashes, NDArray[np.int64]]:
    """Hashes of all shingles of `texts`, and how many each text has."""
    encoded = [_prepare(text) for text in texts]
    lengths = np.fromiter((len(e) + 1 for e in encoded), dtype=np.int64, count=len(encoded))
    data = _TABLE[np.frombuffer(b" ".join([*encoded, b""]), dtype=np.uint8)]
    in_word = data != _SPACE
    edges = np.flatnonzero(np.diff(in_word, prepend=False, append=False))
    starts, ends = edges[0::2], edges[1::2]
    owner = np.searchsorted(np.cumsum(lengths), starts, side="right")
    words_per_text = np.bincount(owner, minlength=len(texts)).astype(np.int64)
    shingles_per_text = np.maximum(0, words_per_text - size + 1)
    if not shingles_per_text.any():
        return np.empty(0, dtype=np.uint64), shingles_per_text

    powers, inverses = _powers(len(data) + 1)
    running = np.zeros(len(data) + 1, dtype=np.uint64)
    np.cumsum((data.astype(np.uint64) + np.uint64(1)) * powers[: len(data)], out=running[1:])
    words = _mix((running[ends] - running[starts]) * inverses[starts])

    count = len(words) - size + 1
    shingles = np.zeros(count, dtype=np.uint64)
    for place in range(size):
        weight = np.uint64(pow(_WEIGHT, place + 1, 1 << 64))
        shingles += words[place : place + count] * weight
    inside = owner[:count] == owner[size - 1 :]
    return _mix(shingles[inside]), shingles_per_text


def _prepare(text: str) -> bytes:
    lowered = text.lower()
    if lowered.isascii():
        return lowered.encode("ascii")
    return _blank_others(lowered).encode("utf-8", "surrogatepass")


def _mix(values: Hashes) -> Hashes:
    """Spread every input bit over all output bits (the finaliser of MurmurHash3)."""
    mixed = values ^ (values >> np.uint64(33))
    mixed *= np.uint64(0xFF51AFD7ED558CCD)
    mixed ^= mixed >> np.uint64(33)
    mixed *= np.uint64(0xC4CEB9FE1A85EC53)
    mixed ^= mixed >> np.uint64(33)
    return mixed


_POWERS: dict[int, tuple[Hashes, Hashes]] = {}


def _powers(length: int) -> tuple[Hashes, Hashes]:
    """P^j and P^-j (mod 2^64) for j under `length`; the longest table so far is kept."""
    known = _POWERS.get(0)
    if known is None or len(known[0]) < length:
        size = max(length, _BLOCK + (_BLOCK >> 2))
        inverse = pow(_PRIME, -1, 1 << 64)
        known = (_power_table(_PRIME & _MASK, size), _power_table(inverse, size))
        if size <= 16 * _BLOCK:
            _POWERS[0] = known
    return known


def _power_table(base: int, size: int) -> Hashes:
    steps = np.full(size, np.uint64(base))
    steps[0] = 1
    return np.cumprod(steps, dtype=np.uint64)


_ASCII_SEPARATORS = {
    code: " "
    for code in range(128)
    if chr(code) in string.punctuation + string.digits or not chr(code).isprintable()
}


def _byte_table() -> NDArray[np.uint8]:
    table = np.arange(256, dtype=np.uint8)
    table[list(_ASCII_SEPARATORS)] = _SPACE
    return table


_TABLE = _byte_table()


_UNSPACED = (
    (0x0E00, 0x0E7F),  # Thai
    (0x0E80, 0x0EFF),  # Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3006),  # signs that stand for Chinese characters
    (0x3041, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31BF),  # Bopomofo, extended
    (0x31F0, 0x31FF),  # Katakana, phonetic extensions
    (0x3400, 0x4DBF),  # Chinese characters, extension A
    (0x4E00, 0x9FFF),  # Chinese characters
    (0xA9E0, 0xA9FF),  # Myanmar, extended B
    (0xAA60, 0xAA7F),  # Myanmar, extended A
    (0xF900, 0xFAFF),  # Chinese characters, compatibility
    (0xFF66, 0xFF9F),  # Katakana, half width
    (0x1AFF0, 0x1B16F),  # Kana, supplements
    (0x20000, 0x3FFFF),  # Chinese characters, later extensions
)
"""Code points of scripts that put no space between words."""

_MARK_CODES = (*range(0x300, 0x20000), *range(0xE0000, 0xF0000))
"""Where marks can be: planes 0, 1 and 14."""

_END = "\x1f"
"""Ends a letter that is a word by itself: a separator that no run outside ASCII contains."""


class _OtherCharacters(dict[int, str]):
    """Table for `str.translate`: what is neither letter nor mark becomes a space."""

    def __missing__(self, code: int) -> str:
        char, kind = chr(code), unicodedata.category(chr(code))[0]
        if kind == "L" and any(first <= code <= last for first, last in _UNSPACED):
            self[code] = f" {char}{_END}"
        else:
            self[code] = char if kind in "LM" else " "
        return self[code]


_OTHERS = _OtherCharacters()
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")


def _blank_others(text: str) -> str:
    """Separators outside ASCII become spaces; only those few characters are looked at."""
    return _NOT_ASCII.sub(_blank_run, text)


def _blank_run(run: re.Match[str]) -> str:
    blanked = run[0].translate(_OTHERS)
    if _END in blanked:
        blanked = _marks_after_end().sub(rf"\1{_END}", blanked)
    return blanked


@cache
def _marks_after_end() -> re.Pattern[str]:
    """Marks that the end of a letter separates from it: all that there are."""
    marks = [c for c in map(chr, _MARK_CODES) if unicodedata.category(c)[0] == "M"]
    ranges: list[list[str]] = []
    for mark in marks:
        if ranges and ord(mark) == ord(ranges[-1][1]) + 1:
            ranges[-1][1] = mark
        else:
            ranges.append([mark, mark])
    found = "".join(f"{first}-{last}" for first, last in ranges)
    # Mostly a space follows: it is looked for first, since the class is long.
    return re.compile(f"{_END}(?! )([{found}]+)")
