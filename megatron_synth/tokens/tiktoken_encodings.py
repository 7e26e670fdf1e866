"""The tiktoken encodings that OpenAI publishes: what their rank files do not hold.

A rank file holds byte strings and ranks only. Expressions and special tokens are those of
`tiktoken_ext/openai_public.py` (tiktoken 0.14).
"""

from dataclasses import dataclass

_END = "<|endoftext|>"
_FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
_PROMPT = "<|endofprompt|>"

_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"

PATTERNS = {
    "r50k_base": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k_base": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k_base": "|".join(
        [
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}",
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}",
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        ]
    ),
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""Split expressions by name; a JSON file beside a rank file may name one of them."""

GIGATOKEN_SCHEMES = {
    PATTERNS["r50k_base"]: "gpt2",
    PATTERNS["cl100k_base"]: "gpt4",
    PATTERNS["o200k_base"]: "o200k",
    PATTERNS["qwen2"]: "qwen2",
}
"""What gigatoken calls these expressions."""


@dataclass(frozen=True)
class TiktokenEncoding:
    """A published encoding.

    Attributes:
        ranks: Name of its rank file, without the suffix.
        pattern: Key of `PATTERNS`.
        specials: Special tokens and their ids.
    """

    ranks: str
    pattern: str
    specials: dict[str, int]


_GPT2 = TiktokenEncoding("r50k_base", "r50k_base", {_END: 50256})

ENCODINGS = {
    "gpt2": _GPT2,
    "r50k_base": _GPT2,
    "p50k_base": TiktokenEncoding("p50k_base", "r50k_base", {_END: 50256}),
    "cl100k_base": TiktokenEncoding(
        "cl100k_base",
        "cl100k_base",
        {_END: 100257, **dict(zip(_FIM, (100258, 100259, 100260), strict=True)), _PROMPT: 100276},
    ),
    "o200k_base": TiktokenEncoding("o200k_base", "o200k_base", {_END: 199999, _PROMPT: 200018}),
}
"""Published encodings by name (and by the name of a rank file)."""
