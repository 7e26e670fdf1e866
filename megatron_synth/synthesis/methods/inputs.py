"""Source documents as prompts can hold them: cut, in pieces, or left out, and counted."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from megatron_synth.config import ConfigError
from megatron_synth.synthesis.config import SynthesisConfig
from megatron_synth.synthesis.methods.defaults import LongInput
from megatron_synth.synthesis.pieces import cut_points, cut_text, first_tokens
from megatron_synth.synthesis.seeds import SeedStore
from megatron_synth.tokens import Tokenizer

_MARGIN = 64  # tokens of a chat form, and of texts that join into more tokens than they had apart
_REMEMBERED = 16  # documents; the generations of one are asked for one after the other
_LEAST = 16  # tokens of a source below which no prompt makes sense

_COUNTED = {"cut": "inputs_cut", "chunk": "inputs_chunked", "skip": "inputs_skipped"}


class Inputs:
    """The source documents of a prompted method.

    Args:
        policy: What becomes of a document of more than `limit` tokens.
        limit: Tokens of a document that one prompt holds.
        seeds: The documents.
        tokenizer: The generator's.
        least: Fewest tokens that the method can use.

    Attributes:
        rows: int64[used], rows of the seed store, ascending.

    Raises:
        ConfigError: No document is left.
    """

    def __init__(
        self,
        policy: LongInput,
        limit: int,
        seeds: SeedStore,
        tokenizer: Tokenizer,
        least: int = 1,
    ) -> None:
        self._policy = policy
        self._limit = limit
        self._seeds = seeds
        self._tokenizer = tokenizer
        self._long = seeds.lengths > limit
        self._short = seeds.lengths < least
        # To cut a document costs more than anything else that a request costs here: all of it is
        # encoded.
        self._remembered = lru_cache(_REMEMBERED)(self._cut)
        used = ~self._short if policy != "skip" else ~(self._short | self._long)
        self.rows: NDArray[np.int64] = np.flatnonzero(used)
        if not len(self.rows):
            raise ConfigError(
                f"no source document can be used: {int(self._long.sum())} are longer than "
                f"{limit} tokens, {int(self._short.sum())} shorter than {least}",
                where="synthesis.long_input, synthesis.max_input_tokens",
                fix="Use a generator with a longer context, a smaller max_output_tokens, or "
                "another long_input.",
            )

    def texts(self, row: int) -> tuple[str, ...]:
        """What prompts hold of a document: its text, the beginning of it, or its pieces."""
        return self._remembered(row)

    def _cut(self, row: int) -> tuple[str, ...]:
        text = self._seeds.text(row)
        if not self._long[row]:
            return (text,)
        if self._policy == "cut":
            return (first_tokens(text, self._tokenizer, self._limit),)
        pieces = -(-int(self._seeds.lengths[row]) // self._limit)
        cuts = cut_points(text, self._tokenizer, pieces)
        assert cuts is not None, "pieces of so many tokens have characters"
        return cut_text(text, cuts)

    def counts(self) -> dict[str, int]:
        """How many documents the policy changed or left out, and how many were too short."""
        counts = {_COUNTED[self._policy]: int(self._long.sum())}
        if self._short.any():
            counts["inputs_too_short"] = int(self._short.sum())
        return counts


def longest_answer(config: SynthesisConfig, context: int, share: int = 2) -> int:
    """Tokens that an answer may have: what the settings say, at most a part of the context."""
    return min(config.max_output_tokens or context, context // share)


def input_limit(config: SynthesisConfig, context: int, prompt_tokens: int, answer: int) -> int:
    """Tokens of a source document that fit a prompt.

    Args:
        config: Its `max_input_tokens` is the most.
        context: Of the generator.
        prompt_tokens: The prompt without the document.
        answer: What the answer may need.

    Raises:
        ConfigError: The prompt and the answer fill the context.
    """
    room = context - prompt_tokens - answer - _MARGIN
    if room < _LEAST:
        raise ConfigError(
            f"the generator's context of {context} tokens leaves no room for a document: the "
            f"prompt has {prompt_tokens}, the answer may have {answer}",
            where="synthesis.max_output_tokens",
            fix="Use a generator with a longer context, a smaller max_output_tokens, or a shorter "
            "prompt (--prompt-file).",
        )
    return min(config.max_input_tokens or room, room)
