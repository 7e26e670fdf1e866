"""Counts as people write them: `1.2M` tokens, `200B`, `1T`."""

import re
from decimal import Decimal
from typing import Annotated

from pydantic import BeforeValidator, Field

_SUFFIX = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_COUNT = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE]\+?[0-9]+)?)\s*([kKmMbBtT]?)\s*")


def parse_count(value: object) -> object:
    """Turn `"1.2M"` into 1200000; leave what is no string for pydantic to judge.

    Suffixes are decimal: K 10³, M 10⁶, B 10⁹, T 10¹².

    Raises:
        ValueError: The string is no count, or not a whole one.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return value
    match = _COUNT.fullmatch(value)
    if not match:
        raise ValueError(f"{value!r} is not a count; write 1200000, 1.2M, 200B or 1T")
    number = Decimal(match[1].replace("_", "")) * _SUFFIX[match[2].upper()]
    if number != number.to_integral_value():
        raise ValueError(f"{value!r} is not a whole number")
    return int(number)


Count = Annotated[int, BeforeValidator(parse_count), Field(ge=0)]
"""A non-negative integer that may be written with a suffix (`1.2M`)."""


def format_count(number: float) -> str:
    """Write a count with three significant digits and a suffix: 1200000 becomes `1.2M`.

    Numbers under 10,000 are written in full.
    """
    if abs(number) < 10_000:
        return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.2f}"
    for suffix in ("T", "B", "M", "K"):
        scaled = number / _SUFFIX[suffix]
        if abs(scaled) >= 0.9995 or suffix == "K":
            digits = max(0, 2 - len(str(int(abs(scaled)))) + 1)
            text = f"{scaled:.{digits}f}"
            return (text.rstrip("0").rstrip(".") if "." in text else text) + suffix
    raise AssertionError("unreachable")
