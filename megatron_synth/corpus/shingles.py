"""13-token shingles: do two texts share a passage, does one text repeat itself?

A text is normalised (lower case; punctuation, symbols and digits become spaces), split at white
space, and each run of 13 words is hashed to 64 bits. Texts of fewer than 13 words have none
(METHODS 1, SBP steps 3 and 5). In scripts that put no space between words (Chinese, Japanese,
Thai, Lao, Khmer, Myanmar), each letter, with the marks on it, counts as a word. All texts of a
batch are hashed together, so that short texts cost no more than long ones.

The loops are compiled (`shingle_kernels`): over 100 MB/s a core.
"""

import re
import string
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHINGLE_TOKENS = 13

Hashes = NDArray[np.uint64]

_BLOCK = 1 << 18
_PAGE = 256
_LOWERED_BY_PLACE = "\u03a3\u0130"
"""Sigma, whose lower case depends on its place in a word, and the dotted I, which becomes two
characters: the only two of which a table of characters cannot say what they become."""


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
    return count_shared(sets[0], sets[1])[1] > 0


def repeats_shingle(text: str) -> bool:
    """Whether some 13-token shingle occurs twice in `text`: a text that repeats itself."""
    hashes = shingle_hashes(text)
    return count_shared(hashes, hashes[:0])[0] < len(hashes)


def shingle_hashes(text: str) -> Hashes:
    """Hashes of the text's shingles, in order: uint64[max(0, words - 12)]."""
    return batch_shingles([text]).hashes


def count_shared(left: Hashes, right: Hashes) -> tuple[int, int]:
    """(distinct hashes of `left`, those of them that stand in `right`); they need not be sorted.

    About 5 ns a hash while those of `left` fit into the cache.
    """
    found: tuple[int, int] = _kernels().count_shared(left, right)
    return found


def batch_shingles(texts: Sequence[str], size: int = SHINGLE_TOKENS) -> ShingleSets:
    """Shingles of `size` words of each text; memory is at most 24 bytes a character of a block.

    Long batches are worked off in blocks of about 256 kB of text.
    """
    pieces: list[Hashes] = []
    counts: list[NDArray[np.int64]] = []
    start = characters = 0
    for position, text in enumerate(texts):
        characters += len(text)
        if characters >= _BLOCK or position + 1 == len(texts):
            hashes, per_text = _hash_block(texts[start : position + 1], size)
            pieces.append(hashes)
            counts.append(per_text)
            start, characters = position + 1, 0
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    if len(pieces) == 1:  # most calls are for one or two texts: no time to lose on these
        counts[0].cumsum(out=offsets[1:])
        return ShingleSets(pieces[0], offsets)
    if pieces:
        np.cumsum(np.concatenate(counts), out=offsets[1:])
    joined = np.concatenate([np.empty(0, dtype=np.uint64), *pieces])
    return ShingleSets(joined, offsets)


def normalise(text: str) -> str:
    """Lower case, with one space for each punctuation mark, symbol, digit or white space.

    Runs of spaces are left: only the words between them count.
    """
    lowered = text.lower()
    if not lowered.isascii():
        lowered = _blank_others(lowered)
    return lowered.translate(_ASCII_SEPARATORS)


@cache
def _kernels() -> Any:
    """The compiled loops; numba takes half a second to start."""
    from megatron_synth.corpus import shingle_kernels

    return shingle_kernels


def _hash_block(texts: Sequence[str], size: int) -> tuple[Hashes, NDArray[np.int64]]:
    """Hashes of all shingles of `texts`, and how many each text has."""
    kernels = _kernels()
    joined = "".join(texts)
    if not joined.isascii() and any(letter in joined for letter in _LOWERED_BY_PLACE):
        texts = [text.lower() for text in texts]
        joined = "".join(texts)
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    ends = np.array(list(accumulate(map(len, texts))), dtype=np.int64)
    words = np.empty(len(codes), dtype=np.uint64)
    counts = np.empty(len(texts), dtype=np.int64)
    table = _characters()
    while (found := kernels.hash_words(codes, ends, table, words, counts)) < 0:
        _look_up(table, -1 - found)
    hashes = np.empty(found, dtype=np.uint64)
    found = kernels.hash_shingles(words[:found], counts, size, hashes)
    return hashes[:found], counts


@cache
def _characters() -> NDArray[np.uint32]:
    """What each character is: uint32[0x110000], filled by `_look_up`, a page at a time."""
    return np.full(sys.maxunicode + 1, _kernels().UNKNOWN, dtype=np.uint32)


def _look_up(table: NDArray[np.uint32], code: int) -> None:
    """Fill in the page of a character."""
    kernels = _kernels()
    first = code - code % _PAGE
    for place in range(first, first + _PAGE):
        lowered = chr(place).lower()[:1]
        kind = unicodedata.category(lowered)[0]
        letter = lowered in string.ascii_lowercase if lowered.isascii() else kind in "LM"
        entry = ord(lowered) if letter else 0
        if kind == "L" and _is_unspaced(ord(lowered)):
            entry |= int(kernels.ALONE)
        elif letter and kind == "M":
            entry |= int(kernels.MARK)
        table[place] = entry


_ASCII_SEPARATORS = {
    code: " "
    for code in range(128)
    if chr(code) in string.punctuation + string.digits or not chr(code).isprintable()
}


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


def _is_unspaced(code: int) -> bool:
    return any(first <= code <= last for first, last in _UNSPACED)


class _OtherCharacters(dict[int, str]):
    """Table for `str.translate`: what is neither letter nor mark becomes a space."""

    def __missing__(self, code: int) -> str:
        char, kind = chr(code), unicodedata.category(chr(code))[0]
        if kind == "L" and _is_unspaced(code):
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
