"""Code points so young that libraries disagree on what they are.

gigatoken 0.10 classifies by Unicode 17, tokenizers 0.23 and tiktoken 0.14 by Unicode 16: some 400
code points that 17 made letters, digits or marks are split otherwise, and next to a letter or a
digit that gives other ids. So a text with a code point that this Python does not know (3.11 to
3.13 know Unicode 14 to 15.1) is not left to gigatoken.
"""

import functools
import unicodedata

import numpy as np
from numpy.typing import NDArray

_PLANES = (range(0x40000), range(0xE0000, 0xE1000))
"""Where characters are; all other planes are private or empty in every version."""

_LEADS = (0xE0, 0xE1, 0xE3, 0xEA, 0xED, 0xEF, 0xF0, 0xF3)
"""First bytes, in UTF-8, of the blocks with code points that this Python does not know.

Without E2 (U+2000 to U+2FFF): quotes, dashes and signs, which are in most texts, and whose
unassigned neighbours are signs too, so in one class with all that is unknown. Without C and D,
whose few gaps (Greek, Armenian, Hebrew, Arabic, Syriac) no version since 14 has filled.
"""


def holds_young(text: str, utf8: bytes) -> bool:
    """Whether `text` may hold such a code point.

    Cost: nothing for ASCII, 0.3 ns a byte for European text, 4 ns a character for other scripts.

    Args:
        text: Valid Unicode.
        utf8: The same text, encoded.
    """
    if len(utf8) == len(text):
        return False
    if not any(lead in utf8 for lead in _LEADS):
        return False
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    return bool(_table().take(points).any())


@functools.cache
def _table() -> NDArray[np.bool_]:
    """[1,114,112], bool: true where this Python knows no character (20 ms to build)."""
    table = np.zeros(0x110000, dtype=np.bool_)
    for plane in _PLANES:
        unknown = map("Cn".__eq__, map(unicodedata.category, map(chr, plane)))
        table[plane.start : plane.stop] = np.fromiter(unknown, dtype=np.bool_, count=len(plane))
    return table
