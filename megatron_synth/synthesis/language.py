"""The language of a text, by py3langid (Lui and Baldwin 2012), whose model comes with it."""

from functools import cache, lru_cache
from typing import Any

_CHARACTERS = 2000
_CERTAIN = 0.9


def differs_in_language(text: str, source: str) -> bool:
    """Whether both texts have a language that is certain, and not the same.

    A language is certain at a probability of 0.9 or more; lists, code and texts of a few words
    have none mostly. The first 2,000 characters of each text are looked at.
    """
    language = language_of(text[:_CHARACTERS])
    return language is not None and language_of(source[:_CHARACTERS]) not in (None, language)


@lru_cache(maxsize=512)  # the answers to one source follow each other
def language_of(text: str) -> str | None:
    """ISO 639 code of the language; None where it is not certain."""
    language, probability = _identifier().classify(text)
    return str(language) if probability >= _CERTAIN else None


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
