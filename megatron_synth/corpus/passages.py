"""Where the words of `shingles.py` stand in a text, and texts with passages cut out."""

import unicodedata
from collections.abc import Iterable

from megatron_synth.corpus.shingles import normalise

_JOINT = "\n\n"


def word_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) in characters of each word, as `batch_shingles` counts words.

    About 1 MB/s: for the few texts that are to be cut.
    """
    spans: list[tuple[int, int]] = []
    start: int | None = None
    alone = False  # the word is a letter of a script without spaces: only marks may follow
    for place, char in enumerate(text):
        piece = normalise(char)
        if not piece.strip(" "):
            if start is not None:
                spans.append((start, place))
            start = None
            continue
        begins = piece.startswith(" ")
        if start is not None and (begins or (alone and unicodedata.category(char)[0] != "M")):
            spans.append((start, place))
            start = None
        if start is None:
            start, alone = place, begins
    if start is not None:
        spans.append((start, len(text)))
    return spans


def cut_words(text: str, grams: Iterable[tuple[int, int]]) -> str:
    """`text` without the passages from word `first` on, `words` words long; overlaps are merged.

    What stands before and after a passage is joined by an empty line, so that no word and no
    sentence is made of two.
    """
    spans = word_spans(text)
    cuts: list[tuple[int, int]] = []
    for first, words in sorted(grams):
        start, end = spans[first][0], spans[first + words - 1][1]
        if cuts and start <= cuts[-1][1]:
            cuts[-1] = (cuts[-1][0], max(end, cuts[-1][1]))
        else:
            cuts.append((start, end))
    kept: list[str] = []
    place = 0
    for start, end in cuts:
        kept.append(text[place:start].strip())
        place = end
    kept.append(text[place:].strip())
    return _JOINT.join(piece for piece in kept if piece)
