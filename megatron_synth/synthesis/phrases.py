"""Phrases that give an answer away: refusals, pieces of the prompt, spelled control tokens."""

import re
from functools import lru_cache

_CANNOT = (
    "(?:can(?:no|['’])t|can not|won['’]t|will not|am unable to|am not able to|do not|don['’]t)"
)
_DO = (
    "(?:help (?:with|you)|assist|fulfil|comply|provide|generate|create|complete|continue|answer|"
    "rewrite|rephrase|summari[sz]e|write|produce|process|access|have (?:access|enough|the|any))"
)
_TEXT = "(?:document|text|passage|extract|article|context|input|content)"
_MODEL = (
    "as an? (?:ai|artificial intelligence|(?:large )?language)(?: language)? ?(?:model|assistant)?"
)

REFUSALS = (
    rf"(?:i['’]m|i am|we are)?(?: so| very| really)? ?(?:sorry|afraid),? (?:but )?(?:that )?"
    rf"(?:i {_CANNOT}|i['’]m (?:unable|not able) to|{_MODEL})",
    rf"i (?:apologi[sz]e|regret)(?: for [^.]*)?,? (?:but|that) (?:i {_CANNOT}|i['’]m)",
    rf"(?:unfortunately,? )?(?:i {_CANNOT}|i['’]m (?:unable|not able) to) {_DO}",
    rf"{_MODEL},",
    rf"(?:please|could you(?: please)?|can you(?: please)?) (?:provide|share|paste)"
    rf"(?: me with)? (?:the|a|some|more|your) (?:\w+ )?{_TEXT}",
    rf"(?:it (?:seems|looks|appears)|unfortunately,?)(?: like| that)?"
    rf"(?: you| the {_TEXT})(?: you)?(?: \w+)? (?:did not|didn['’]t|have not|haven['’]t|is missing|"
    rf"is empty|was not|wasn['’]t)",
)
"""How a model begins that does not do what it is asked to, as expressions without regard to case.

They count at the very beginning of an answer only: a text about refusals, and a story in which
somebody says so between quotation marks, is none."""

_REFUSAL = re.compile("|".join(f"(?:{phrase})" for phrase in REFUSALS), re.IGNORECASE)
_BEGINNING = 200  # characters
_LOWERED_TO_ASCII = "\u0130\u212a"
"""The dotted I and the Kelvin sign: the only characters outside ASCII with ASCII in their lower
case."""
_FIELD = re.compile(r"\{\{.*?\}\}|\{\w*\}")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n")
_BULLET = re.compile(r"^[\s\-*#>•]+|^\d+[.)]\s+")

SPECIAL_SPELLINGS = re.compile(
    r"<[|｜][\w▁ :.\-]{1,40}[|｜]>"  # <|endoftext|>, <|im_start|>, <｜end▁of▁sentence｜>
    r"|</?s>|<(?:bos|eos|pad|unk|mask|sep|cls)>"
    r"|<(?:start|end)_of_(?:turn|image)>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|<</?SYS>>"
    r"|\[(?:CLS|SEP|PAD|MASK|UNK)\]"
)
"""Control tokens of widely used tokenizers as they are spelled. `<s>` is a tag of HTML too."""


def begins_with_refusal(text: str) -> bool:
    """Whether an answer begins with one of `REFUSALS`."""
    return _REFUSAL.match(" ".join(text[:_BEGINNING].split())) is not None


def spells_special_token(text: str) -> bool:
    """Whether a control token of a widely used tokenizer is spelled out in `text`."""
    return SPECIAL_SPELLINGS.search(text) is not None


@lru_cache(maxsize=64)
def prompt_phrases(body: str, words: int) -> tuple[str, ...]:
    """Sentences and lines of a prompt with at least `words` words, as `repeats_prompt` sees them.

    Args:
        body: The prompt with its fields unfilled; what stands around a field are two phrases.
        words: Fewest words; fewer are ordinary language that any text may hold.
    """
    pieces = [_BULLET.sub("", p) for part in _FIELD.split(body) for p in _SENTENCE_END.split(part)]
    phrases = (_plain(piece) for piece in pieces)
    return tuple(dict.fromkeys(phrase for phrase in phrases if len(phrase.split()) >= words))


def repeats_prompt(text: str, source: str, body: str, words: int) -> bool:
    """Whether a phrase of the prompt stands in `text` that does not stand in its source."""
    # Words are looked for first: nearly always one is missing, and the spaces do not matter then.
    # Bytes are lowered four times as fast as characters, but in ASCII alone.
    lowered = _lowered_bytes(text)
    phrases = [
        phrase
        for phrase in prompt_phrases(body, words)
        if all(word in lowered for word in _longest_first(phrase))
    ]
    if not phrases:
        return False
    plain = _plain(text)
    found = [phrase for phrase in phrases if phrase in plain]
    return bool(found) and any(phrase not in _plain(source) for phrase in found)


def _lowered_bytes(text: str) -> bytes:
    """UTF-8 of `text`, its ASCII letters in lower case, and the others too where they can become
    ASCII.
    """
    if any(letter in text for letter in _LOWERED_TO_ASCII):
        text = text.lower()
    return text.encode("utf-8", "surrogatepass").lower()


@lru_cache(maxsize=1024)
def _longest_first(phrase: str) -> tuple[bytes, ...]:
    """The words of a phrase that are ASCII, whose lower case `_lowered_bytes` knows."""
    words = [word.encode() for word in phrase.split() if word.isascii()]
    return tuple(sorted(words, key=len, reverse=True))


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
