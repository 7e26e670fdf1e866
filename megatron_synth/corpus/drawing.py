"""Draw training documents by tokens: D, and the oracle's pool that holds D.

Every training document has a random key from the seed; D is the documents with the smallest keys
until it has its tokens, the pool goes on from there until it has its own. Memory: 16 bytes a
document.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from megatron_synth.config import Count, DataError
from megatron_synth.corpus.document import Document
from megatron_synth.corpus.holding_out import HeldOut, HoldOutConfig, seeded_hash
from megatron_synth.corpus.reading import read_documents
from megatron_synth.runs import Progress
from megatron_synth.tokens import Tokenizer

_UNKNOWN = -1
_BLOCK = 1 << 20
_MARGIN = 1.03
_FIRST_GUESS = 3.0
"""Characters a token, until some documents are counted."""


class DrawConfig(HoldOutConfig):
    """What is drawn for training."""

    organic_tokens: Annotated[Count, Field(ge=1)] = 200_000
    """Tokens of D, EOS counted; exceeded by less than one document."""
    pool_tokens: Annotated[Count, Field(ge=1)] = 1_000_000
    """Tokens of the oracle's pool, D included."""
    max_document_tokens: int = Field(default=511, ge=1)
    """Longest document, EOS not counted: one less than a window, so that it fits with EOS."""


@dataclass(frozen=True)
class Draw:
    """Training documents in the corpus's order: `organic[i]`, `pooled[i]` for the i-th."""

    organic: NDArray[np.bool_]
    pooled: NDArray[np.bool_]
    organic_tokens: int
    pool_tokens: int
    too_long: int


class Drawing:
    """Counts the tokens of as few documents as the draw needs."""

    def __init__(
        self,
        config: DrawConfig,
        documents: Path,
        tokenizer: Tokenizer,
        held_out: HeldOut,
        progress: Progress,
    ) -> None:
        self._config = config
        self._documents = documents
        self._tokenizer = tokenizer
        self._held_out = held_out
        self._progress = progress
        keys, characters = array("Q"), array("I")
        for _, document in training(documents, held_out):
            keys.append(seeded_hash(config.seed, "draw", document.id))
            characters.append(len(document.text))
        self._order = np.argsort(np.frombuffer(keys, dtype=np.uint64), kind="stable")
        self._characters = np.frombuffer(characters, dtype=np.uint32).astype(np.int64)
        self._tokens = np.full(len(keys), _UNKNOWN, dtype=np.int32)

    def draw(self) -> Draw:
        """Go along the order, counting tokens, until the pool has its own."""
        config, order = self._config, self._order
        while True:
            guess = np.where(
                self._tokens == _UNKNOWN, self._characters / self._ratio(), self._usable()
            )
            enough = np.searchsorted(np.cumsum(guess[order]), config.pool_tokens * _MARGIN) + 1
            needed = order[:enough]
            if (self._tokens[needed] == _UNKNOWN).any():
                self._count(needed)
            reached = np.cumsum(self._usable()[needed])
            available = int(reached[-1]) if len(reached) else 0
            if available >= config.pool_tokens:
                return self._cut(needed, reached)
            if len(needed) == len(order):
                raise DataError(
                    f"the corpus has {available:,} tokens to train on, but pool_tokens is "
                    f"{config.pool_tokens:,} (held out: {self._held_out.documents:,} documents; "
                    f"over {config.max_document_tokens:,} tokens: {self._too_long():,} of "
                    f"{len(order):,})",
                    where=self._documents,
                    fix="Use a larger corpus, lower organic_tokens and pool_tokens, or raise "
                    "max_document_tokens.",
                )

    def _cut(self, needed: NDArray[np.intp], reached: NDArray[np.int64]) -> Draw:
        usable = self._tokens[needed] <= self._config.max_document_tokens
        parts = []
        for target in (self._config.organic_tokens, self._config.pool_tokens):
            stop = int(np.searchsorted(reached, target)) + 1
            chosen = np.zeros(len(self._tokens), dtype=bool)
            chosen[needed[:stop][usable[:stop]]] = True
            parts.append((chosen, int(reached[stop - 1])))
        (organic, organic_tokens), (pooled, pool_tokens) = parts
        return Draw(organic, pooled, organic_tokens, pool_tokens, self._too_long())

    def _usable(self) -> NDArray[np.int64]:
        """Tokens with EOS of each counted document that is not too long; else 0."""
        fits = (self._tokens != _UNKNOWN) & (self._tokens <= self._config.max_document_tokens)
        return np.where(fits, self._tokens.astype(np.int64) + 1, 0)

    def _too_long(self) -> int:
        return int((self._tokens > self._config.max_document_tokens).sum())

    def _ratio(self) -> float:
        """Characters that pass for each token that can be used."""
        known = self._tokens != _UNKNOWN
        usable = int(self._usable().sum())
        return float(self._characters[known].sum()) / usable if usable else _FIRST_GUESS

    def _count(self, needed: NDArray[np.intp]) -> None:
        """Count the tokens of the needed documents that are not counted yet."""
        wanted = np.zeros(len(self._tokens), dtype=bool)
        wanted[needed] = True
        wanted &= self._tokens == _UNKNOWN
        self._progress.phase("counting tokens", float(wanted.sum()), "documents")
        done = 0
        chosen = ((i, d) for i, d in training(self._documents, self._held_out) if wanted[i])
        for block in blocks(chosen):
            counts = token_counts(self._tokenizer, [d for _, d in block])
            self._tokens[[i for i, _ in block]] = counts
            done += len(block)
            self._progress.update(done)


def training(documents: str | Path, held_out: HeldOut) -> Iterator[tuple[int, Document]]:
    """Documents that are not held out, numbered in the corpus's order."""
    return enumerate(d for d in read_documents(documents) if not held_out.holds(d))


def blocks(numbered: Iterator[tuple[int, Document]]) -> Iterator[list[tuple[int, Document]]]:
    """Numbered documents in lists of about 1 MB of text."""
    block: list[tuple[int, Document]] = []
    characters = 0
    for entry in numbered:
        block.append(entry)
        characters += len(entry[1].text)
        if characters >= _BLOCK:
            yield block
            block, characters = [], 0
    if block:
        yield block


def token_counts(tokenizer: Tokenizer, documents: list[Document]) -> list[int]:
    """Tokens of each document, EOS not counted."""
    return [len(ids) for ids in tokenizer.encode_batch([d.text for d in documents])]
