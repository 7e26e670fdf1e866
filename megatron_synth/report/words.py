"""Numbers and hostile text, as people read them."""

import math
import re
import unicodedata

from megatron_synth.config import format_count

MINUS = "\u2212"
NONE = "\u2013"

_HIDDEN = re.compile(
    "[\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufff9-\uffff]"
)


def signed(value: float | None, digits: int = 4) -> str:
    """A number with its sign, and a true minus: `−0.0383`; a zero has none."""
    if value is None:
        return NONE
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else MINUS) + text


def plain(value: float | None, digits: int = 4) -> str:
    """A number with fixed digits."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:.{digits}f}".replace("-", MINUS)


def percent(value: float | None, digits: int = 0) -> str:
    """A fraction as percent: `42 %`."""
    if value is None:
        return NONE
    text = f"{100 * value:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", MINUS) + "\u202f%"


def count(value: float | None) -> str:
    """`1.2M`; see `config.format_count`."""
    return NONE if value is None else format_count(value)


def whole(value: float | None) -> str:
    """`12,345`."""
    return NONE if value is None else f"{value:,.0f}"


def power(value: float | None) -> str:
    """`3.1 × 10¹⁵`."""
    if value is None or value <= 0:
        return NONE
    exponent = math.floor(math.log10(value))
    mantissa = f"{value / 10**exponent:.1f}"
    if mantissa == "10.0":
        mantissa, exponent = "1.0", exponent + 1
    raised = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa}\u202f×\u202f10{raised}"


def duration(seconds: float | None) -> str:
    """`48 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds is None:
        return NONE
    if seconds < 9.95:
        return f"{seconds:.1f}\u202fs"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded}\u202fs"
    if rounded < 3600:
        return f"{rounded // 60}\u202fmin {rounded % 60:02d}\u202fs"
    minutes = round(seconds / 60)
    return f"{minutes // 60}\u202fh {minutes % 60:02d}\u202fmin"


def visible(text: str, limit: int | None = None) -> str:
    """Text that hides nothing: control, bidi and zero-width characters become visible names.

    What remains is only text; markup is escaped by the template. With `limit`, says how many
    characters were left out.
    """
    rest = 0
    if limit is not None and len(text) > limit:
        rest = len(text) - limit
        text = text[:limit]
    shown = "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cn", "Co") else _named(c)
        for c in text.replace("\r\n", "\n")
    )
    shown = _HIDDEN.sub(lambda match: _named(match[0]), shown)
    return shown + (f" … ({rest:,} characters more)" if rest else "")


def _named(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"
