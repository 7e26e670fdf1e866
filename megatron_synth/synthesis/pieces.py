"""A document in token-equal pieces: the split points of latent thoughts (METHODS 1).

`latent_thoughts` asks for a rationale at each of the G points between G + 1 pieces; `stretch`
puts the rationales back between the same pieces. What both must agree on is the character at
which a rationale stands, so a rationale's document carries it: `metadata[CUT]`.
"""

from itertools import pairwise

from megatron_synth.tokens import Tokenizer

CUT = "cut"
"""Key in the metadata of a rationale's document: characters of the source text before it."""

_BYTES = 4  # the longest character in UTF-8: so many tokens can share one


def split_points(token_count: int, pieces: int) -> tuple[int, ...]:
    """Ends of all but the last of `pieces` pieces whose lengths differ by one token at most.

    Args:
        token_count: Tokens of the whole.
        pieces: How many, at least 1; G + 1 for G rationales.

    Returns:
        int[pieces - 1], ascending.
    """
    return tuple(token_count * (i + 1) // pieces for i in range(pieces - 1))


def cut_points(text: str, tokenizer: Tokenizer, pieces: int) -> tuple[int, ...] | None:
    """Characters at which `text` is cut into `pieces` token-equal pieces, or None if too short.

    A cut stands where a token begins. Where several tokens share one character, it stands behind
    that character. A tokenizer that does not give the text back (lower case, folded blanks) is
    asked for the longest beginning of the text that has no more tokens than the piece's end.

    Args:
        text: The document.
        tokenizer: Counts the tokens.
        pieces: How many, at least 1.

    Returns:
        int[pieces - 1], ascending, each over 0 and under `len(text)`; None where some piece would
        be empty: fewer tokens, or fewer characters, than pieces.
    """
    ids = tokenizer.encode(text)
    if len(ids) < pieces:
        return None
    cuts = tuple(_character(text, ids, end, tokenizer) for end in split_points(len(ids), pieces))
    borders = (0, *cuts, len(text))
    return cuts if all(left < right for left, right in pairwise(borders)) else None


def cut_text(text: str, cuts: tuple[int, ...]) -> tuple[str, ...]:
    """The pieces between `cuts`; joined, they are `text`: str[len(cuts) + 1]."""
    return tuple(text[left:right] for left, right in pairwise((0, *cuts, len(text))))


def first_tokens(text: str, tokenizer: Tokenizer, count: int) -> str:
    """The beginning of `text` that its first `count` tokens spell; all of it where it has fewer.

    Args:
        text: The document.
        tokenizer: Counts the tokens.
        count: How many, at least 1.
    """
    ids = tokenizer.encode(text)
    return text[: _character(text, ids, count, tokenizer)] if len(ids) > count else text


def _character(text: str, ids: list[int], end: int, tokenizer: Tokenizer) -> int:
    """Characters before the token `end`."""
    for later in range(end, min(end + _BYTES, len(ids) + 1)):
        beginning = tokenizer.decode(ids[:later])
        if text.startswith(beginning):
            return len(beginning)
    return _longest_beginning(text, end, tokenizer)


def _longest_beginning(text: str, tokens: int, tokenizer: Tokenizer) -> int:
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if len(tokenizer.encode(text[:middle])) <= tokens:
            low = middle
        else:
            high = middle - 1
    return low
