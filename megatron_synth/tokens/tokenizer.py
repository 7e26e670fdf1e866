"""What every tokenizer can do: what it encodes is data, control tokens are added by us alone."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_synth.config import DataError
from megatron_synth.runs import hash_json
from megatron_synth.tokens.special import Spellings

SEPARATOR = "<|separator|>"
"""Our control token between a seed document and what is written from it (METHODS 1, SBP)."""

_CONTEXTS = ("{}", " {}", "{} ", "a{}b", "a {} b", "1{}\n", "{}{}")


class Tokenizer(ABC):
    """A tokenizer that treats all text as data.

    `encode` never adds BOS or EOS, and the spelling of a special token inside a text is encoded
    as the ordinary text that it is. Only the ids below are control tokens, and only the caller
    puts them in.

    Attributes:
        source: What `load` takes to load it again, in another process too.
        folder: Where its files lie; for messages.
        vocab_size: One more than the largest id, as Megatron-LM counts it.
        eos_id: Ends every document.
        bos_id: Begins a document, where the tokenizer has such a token.
        separator_id: Stands between d1 and d2 in synthesizer tuning: the id of `SEPARATOR` where
            the tokenizer has that special token, else `eos_id`.
        special_ids: Ids of all control tokens. The token for unknown text is none of them: a
            model without byte fallback gives it for ordinary text.
        special_spellings: Spelling -> id of every special token, that of unknown text included.
    """

    def __init__(
        self,
        source: str,
        folder: Path,
        *,
        vocab_size: int,
        eos_id: int,
        bos_id: int | None,
        special_spellings: Mapping[str, int],
        unknown: str | None,
    ) -> None:
        """Set the attributes.

        Args:
            source: What `load` takes to load it again.
            folder: Where its files lie.
            vocab_size: One more than the largest id.
            eos_id: Ends every document.
            bos_id: Begins a document.
            special_spellings: Spelling -> id of every special token.
            unknown: The one of them that stands for unknown text.
        """
        self.source = source
        self.folder = folder
        self.vocab_size = vocab_size
        self.eos_id = eos_id
        self.bos_id = bos_id
        self.special_spellings = dict(special_spellings)
        self.separator_id = self.special_spellings.get(SEPARATOR, eos_id)
        ids = {i for spelling, i in special_spellings.items() if spelling != unknown}
        roles = {eos_id} if bos_id is None else {eos_id, bos_id}
        self.special_ids = frozenset(ids | roles)
        self._spellings = Spellings(self.special_spellings)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides which ids a text gets (32 hex digits)."""
        roles = {"eos": self.eos_id, "bos": self.bos_id, "separator": self.separator_id}
        return hash_json({**self._content(), **roles})

    @abstractmethod
    def _content(self) -> Mapping[str, Any]:
        """What decides which ids a text gets, as JSON can hold it."""

    @staticmethod
    def load(folder_or_file_or_name: str | Path) -> "Tokenizer":
        """Load a tokenizer of any kind; the files say which.

        Args:
            folder_or_file_or_name: A folder with `tokenizer.json` and `tokenizer_config.json`
                (Hugging Face), else with `tokenizer.model` (SentencePiece) or one `*.tiktoken`
                file; or such a file itself; or the name of a tiktoken encoding (`cl100k_base`);
                or a name on the hub where one is reachable.

        Raises:
            DataError: No such thing, a damaged file, no EOS token, or a tokenizer that makes
                control tokens out of ordinary text.
        """
        from megatron_synth.tokens.loading import load_tokenizer

        return load_tokenizer(folder_or_file_or_name)

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without BOS or EOS.

        Raises:
            DataError: The text holds a lone surrogate, so it is not valid Unicode.
        """
        return self.encode_batch([text])[0]

    @abstractmethod
    def encode_batch(self, texts: Sequence[str], *, keep_special: bool = False) -> list[list[int]]:
        """Ids of many texts, on all cores that `RAYON_NUM_THREADS` allows.

        Args:
            texts: Valid Unicode.
            keep_special: Make a special token's spelling its control token, as the library of
                the tokenizer does when it is told to.

        Raises:
            DataError: A text holds a lone surrogate or is no string.
        """

    @abstractmethod
    def decode(self, ids: Iterable[int], *, keep_special: bool = False) -> str:
        """Text of `ids`; control tokens leave nothing behind unless `keep_special`.

        Ids that the tokenizer does not have (rows of a padded vocabulary) are left out.
        """

    def count_special_spellings(self, text: str) -> int:
        """How often a special token is spelled out in `text`."""
        return self._spellings.count(text)

    def find_special(self, text: str) -> str | None:
        """The first special token that is spelled out in `text`, for a message or a choice."""
        return self._spellings.find(text)

    def _refuse_unsafe(self) -> None:
        """Refuse a tokenizer whose model makes control tokens out of their spellings."""
        spellings = [s for s, i in self.special_spellings.items() if i in self.special_ids]
        texts = [context.replace("{}", s) for s in spellings for context in _CONTEXTS]
        for text, ids in zip(texts, self.encode_batch(texts), strict=True):
            if self.special_ids.intersection(ids):
                raise DataError(
                    f"the text {text!r} becomes a control token in this tokenizer",
                    where=self.folder,
                    fix="Its model holds its special tokens as ordinary pieces. Use a byte-level "
                    "BPE tokenizer, or train one from the corpus.",
                )


def refuse_invalid(texts: Sequence[str]) -> None:
    """Refuse what is no valid Unicode.

    Raises:
        DataError: A text holds a lone surrogate or is no string; the message says which.
    """
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            reason = f"text {position} is {type(text).__name__}, not str"
        else:
            try:
                text.encode("utf-8")
                continue
            except UnicodeEncodeError:
                reason = f"text {position} holds a lone surrogate"
        raise DataError(
            f"a text of this batch cannot be encoded: {reason}",
            fix="Read documents through megatron_synth.corpus, which sets such rows aside.",
        )


def thread_count() -> int:
    """Threads to encode with: `RAYON_NUM_THREADS`, which `tokenizers` obeys, else all cores."""
    asked = os.environ.get("RAYON_NUM_THREADS", "")
    if asked.isdigit() and int(asked):
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
