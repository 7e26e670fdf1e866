"""Normalisation steps that a config names; each counts the documents that it changed."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal

from megatron_synth.corpus.document import BadRow, check_text

if TYPE_CHECKING:
    from ftfy import TextFixerConfig

Step = Literal["ftfy", "unicode", "line_breaks", "long_urls"]
"""Name of a normalisation step; in the order `ftfy`, `unicode`, `long_urls`, `line_breaks` the last
three leave nothing for a second pass."""

# Characters of RFC 3986 but the apostrophe, which is a quotation mark more often: where no spaces
# stand between words, prose may follow an address immediately.
_LONG_URL = re.compile(r"(?:https?|ftp)://[A-Za-z0-9._~:/?#\[\]@!$&()*+,;=%-]{80,}")
_LINE_ENDS = re.compile(r"\r\n?|[\x0b\x0c\u2028\u2029]")
_MANY_BREAKS = re.compile(r"\n{3,}")
_INVISIBLE = re.compile(r"[\ufeff\u200b\u2060\x01-\x08\x0e-\x1f\x7f]")


def normalise_text(text: str, steps: Sequence[Step], changed: Counter[str]) -> str:
    """Apply `steps` in order; `changed` counts, by step, the texts that it altered."""
    for step in steps:
        after = _STEPS[step](text)
        if after != text:
            changed[step] += 1
        text = after
    return text


def fix_broken(text: str) -> str:
    """Mend mojibake (`schÃ¶n` for `schön`, `â€œ` for a curly quote) with ftfy.

    Only ftfy's repairs of wrong decoding are on: encodings, inconsistent UTF-8, lossy sequences
    and C1 control characters. What is fine stays: curly quotes, ligatures, fractions, full-width
    letters, HTML entities. Where ftfy is not sure it changes nothing. About 5 MB/s outside ASCII.
    A text that would hold a NUL character or a lone surrogate afterwards is left as it is.
    """
    if text.isascii():  # nothing that was decoded wrongly is plain ASCII
        return text
    import ftfy

    mended = ftfy.fix_text(text, _ftfy_config())
    try:
        check_text(mended)
    except BadRow:
        return text
    return mended


@cache
def _ftfy_config() -> "TextFixerConfig":
    import ftfy

    return ftfy.TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_encoding=True,
        restore_byte_a0=True,
        replace_lossy_sequences=True,
        decode_inconsistent_utf8=True,
        fix_c1_controls=True,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        fix_surrogates=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )


def fix_unicode(text: str) -> str:
    """Composed characters (NFC), no byte-order marks, no control or zero-width characters.

    Vertical tabs and form feeds end lines: without them, two words would become one.
    """
    text = text.replace("\x0b", "\n").replace("\x0c", "\n")
    text = _INVISIBLE.sub("", text)  # first: they keep a letter and its accent apart
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def fix_line_breaks(text: str) -> str:
    """One kind of line break, no blanks before it, at most one empty line; ends stripped."""
    text = _LINE_ENDS.sub("\n", text)
    if " \n" in text or "\t\n" in text or text.endswith((" ", "\t")):
        text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    return _MANY_BREAKS.sub("\n\n", text).strip("\n")


def strip_long_urls(text: str) -> str:
    """Remove web addresses with 80 or more characters after the scheme; NFC stays NFC."""
    stripped = _LONG_URL.sub("", text)
    if stripped == text or text.isascii() or not unicodedata.is_normalized("NFC", text):
        return stripped
    return unicodedata.normalize("NFC", stripped)  # a letter may have met an accent


_STEPS: dict[Step, Callable[[str], str]] = {
    "ftfy": fix_broken,
    "unicode": fix_unicode,
    "line_breaks": fix_line_breaks,
    "long_urls": strip_long_urls,
}
