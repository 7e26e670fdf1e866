"""Letters by script: cheap, offline, and enough to see which languages a corpus can hold.

A language detector would be a model to fetch; the script of each letter stands in Unicode's names.
"""

import re
import string
import unicodedata
from collections import Counter

_NOT_LETTERS = bytes(set(range(256)) - set(string.ascii_letters.encode()))
_NO_SCRIPT = frozenset(("MASCULINE", "FEMININE", "MODIFIER", "UNKNOWN"))
"""First words of the names of letters that many scripts share."""
_OTHERS = re.compile(r"[^\x00-\x7f]+")


class _ScriptOf(dict[str, str]):
    """Script of a letter by the first word of its name; empty for what is no letter."""

    def __missing__(self, char: str) -> str:
        script = ""
        if unicodedata.category(char)[0] == "L":
            word = unicodedata.name(char, "UNKNOWN").split()[0].split("-")[0]
            script = "" if word in _NO_SCRIPT else word
        self[char] = script
        return script


_SCRIPTS = _ScriptOf()


def count_scripts(text: str) -> Counter[str]:
    """Letters of `text` by script: `LATIN`, `GREEK`, `CYRILLIC`, `CJK`, `HANGUL` and so on."""
    found: Counter[str] = Counter()
    others = "" if text.isascii() else "".join(_OTHERS.findall(text))
    for char, count in Counter(others).items():
        script = _SCRIPTS[char]
        if script:
            found[script] += count
    latin = len(text.encode("ascii", "ignore").translate(None, _NOT_LETTERS))
    if latin:
        found["LATIN"] += latin
    return found
