"""Whether a fast encoder gives a tokenizer's own ids: on hard texts, special tokens, samples."""

import functools
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_synth.config import DataError, RunError
from megatron_synth.tokens.tokenizer import Tokenizer

_SAMPLE_CHARACTERS = 400_000
_SPECIALS = 512
"""Special tokens that are tried in every position; any more in one position each."""

_AROUND = (
    "{}",
    "{} and after",
    "before {}",
    "a{}b",
    "1{}2",
    "x  {}\n\n\t{}  y",
    "{}{}",
    " {}\n",
    "é{}漢{}\u0301",
)

_WORDS = (
    "The quick brown fox can't, won't and shouldn't've; IT'S 'tis they'LL I'm we'd you're 'S 'sx",
    "naïve café e\u0301le\u0300ve cafe\u0301 Å A\u030a ﬁ ﬀ ½ ² ① Ⅷ ẞß ſ İı Ǆ ㎏ ﷺ Ａｂｃ１２",
    "日本語のテキスト、漢字とカナ。한국어 텍스트 中文没有空格的长句子测试。ภาษาไทยไม่มีช่องว่าง",
    "שלום עולם مرحبا بالعالم ١٢٣ ۴۵۶ हिन्दी में नमस्ते ক্ষ தமிழ் ქართული Ελληνικά ЖЗИ \u202eabc\u202c",
    "👩\u200d👩\u200d👧\u200d👦 👍🏽 🏳️\u200d🌈 🇫🇷🇩🇪 ❤️ ☺ 🧑🏿\u200d🚀 1️⃣ \U0001f9ff\ufe0f\u200d",
    "0 1 12 123 1234 12345 123456 1234567 1,234.56 0x1F 3.14e-10 1st 2nd v1.2.3 ٣٤٥٦ ½¾ 10²",
    'https://example.org/a/b?c=d&e=%20#f user@mail.org C:\\dir\\x.txt {"k": [1, 2]}',
    "</s> <s> <unk> <pad> [CLS] [MASK] <|im_start|> <|x|>",
    "def f(x):\n    if x:\n\t\treturn x  # ok\n\n\n    else:\r\n        pass\r\n\r\n",
    "|end <0x0A> \\n\\t",
    "... --- ___ *** === ?!?! (((()))) “quotes” ‘single’ «guillemets» — – … §¶†‡ €£¥",
    "MiXeD CaSe camelCaseWord snake_case_word SCREAMING_CASE HTTPServer iOS McDonald O'Neill's",
)
_BLANKS = (" ", "  ", "   ", "\t", "\n", "\r", "\r\n", "\n\n", " \n", "\n ", "\t \t", "\u00a0")
_RARE_BLANKS = (
    "\u2028",
    "\u2029",
    "\u3000",
    "\u200b",
    "\u0085",
    "\x0b",
    "\x0c",
    "\u1680",
    "\ufeff",
)
_CHARACTERS = (
    (range(0x01, 0x600), 1),
    (range(0x600, 0x3400), 5),
    (range(0x3400, 0xD800), 97),
    (range(0xE000, 0xF900), 701),
    (range(0xF900, 0x10000), 7),
    (range(0x10000, 0x20000), 61),
    (range(0x20000, 0x110000), 9973),
)
"""Code points and the step through them: every general category but surrogates is met."""


class _Encoder(Protocol):
    def encode(self, text: str) -> NDArray[np.uint32]:
        """Ids, spelled special tokens as control tokens."""


def prove_fast(fast: _Encoder, tokenizer: Tokenizer, samples: Sequence[str]) -> str | None:
    """Compare a fast encoder with a tokenizer, id by id.

    It is compared on hard texts (every Unicode category, blanks, line breaks, digits, scripts,
    joiners, combining marks, control characters but NUL, long words), on every special token's
    spelling in several positions, and on the first 400,000 characters of `samples`.

    Args:
        fast: Makes control tokens of spelled special tokens.
        tokenizer: The reference.
        samples: Texts of the corpus at hand.

    Returns:
        None where all ids are equal, else one line that names the first text that differs.
    """
    named = [*(("hard text", text) for text in _hard_texts()), *_around(tokenizer)]
    named += _limit(samples)
    for spells in (False, True):
        group = [(n, t) for n, t in named if (tokenizer.find_special(t) is not None) is spells]
        wanted = tokenizer.encode_batch([text for _, text in group], keep_special=spells)
        for (name, text), ids in zip(group, wanted, strict=True):
            reason = _compare(fast, text, ids)
            if reason:
                return f"{name} {reason}"
    return None


def _compare(fast: _Encoder, text: str, wanted: list[int]) -> str | None:
    try:
        got = fast.encode(text).tolist()
    except (DataError, RunError) as error:
        return f"{text[:60]!r}: {error}"
    if got == wanted:
        return None
    pairs = zip(got, wanted, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(got), len(wanted)))
    return (
        f"{text[:60]!r} ({len(text):,} characters): from token {at} on "
        f"{got[at : at + 4]} instead of {wanted[at : at + 4]}"
    )


def _limit(samples: Sequence[str]) -> Iterator[tuple[str, str]]:
    left = _SAMPLE_CHARACTERS
    for number, sample in enumerate(samples):
        if left <= 0:
            return
        yield f"sample {number}", sample[:left]
        left -= len(sample)


def _around(tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    for number, spelling in enumerate(tokenizer.special_spellings):
        for place in _AROUND if number < _SPECIALS else _AROUND[3:4]:
            yield "special token in", place.replace("{}", spelling)
        yield "part of a special token", f"x{spelling[:-1]} {spelling[1:]}"


@functools.cache
def _hard_texts() -> tuple[str, ...]:
    texts = ["", *_WORDS, " ".join(_WORDS), "\n".join(_WORDS), *_BLANKS, *_RARE_BLANKS]
    texts += [f"{blank}word{blank}{blank}two{blank}" for blank in (*_BLANKS, *_RARE_BLANKS)]
    texts += [f"a{one}{two}b" for one in _BLANKS for two in (*_BLANKS, *_RARE_BLANKS)]
    texts += [f"x{' ' * n}y{chr(10) * n}z{' ' * n}" for n in (4, 7, 8, 15, 16, 31, 64, 255)]
    texts += [word * 200 for word in ("a", "ab", "7", "!", "é", "漢", "👍", "\u0301", "Aa", "'s")]
    texts += ["nospaceatall" * 300, "漢字仮名交じり文" * 200, "a\u0301\u0323" * 200, "_-" * 500]
    for points, step in _CHARACTERS:
        for start in range(points.start, points.stop, step * 64):
            several = [chr(p) for p in range(start, min(start + step * 64, points.stop), step)]
            texts.append("".join(several))
            texts.append("".join(f"a{c}1{c} {c}s'{c}" for c in several[::3]))
    return tuple(texts)
