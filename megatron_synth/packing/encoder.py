"""Texts to ids: control tokens stand where packing puts them, and nowhere else."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_synth.config import DataError
from megatron_synth.corpus.columns import Value, texts_of
from megatron_synth.packing.config import PackConfig
from megatron_synth.packing.indexed import token_dtype
from megatron_synth.tokens import Tokenizer
from megatron_synth.tokens.fast import FastEncoder

Ids = NDArray[np.integer]

_FEW = 4


@dataclass(frozen=True)
class Encoded:
    """Documents as ids.

    Attributes:
        ids: uint16 or int32 [n], all sequences one after another.
        lengths: Ids of each sequence.
        sequences: Sequences of each document; None where each document is one.
        text_bytes: UTF-8 bytes of the texts.
        spelled: How often each document that spells special tokens spells them.
    """

    ids: Ids
    lengths: list[int]
    sequences: list[int] | None
    text_bytes: int
    spelled: dict[int, int]


class Encoder:
    """Encodes blocks of texts under a policy about special tokens.

    Args:
        tokenizer: The reference, and the only encoder of texts that spell special tokens.
        fast: Gives the same ids on all other texts, faster; None where nothing is proven to.
        config: See `PackConfig`.
    """

    def __init__(self, tokenizer: Tokenizer, fast: FastEncoder | None, config: PackConfig) -> None:
        self._tokenizer = tokenizer
        self._fast = fast
        self._policy = config.special_tokens
        self._apart = not config.sentences  # a list holds parts: texts that each end in EOS
        dtype = token_dtype(tokenizer.vocab_size)
        self.dtype = dtype
        self._before = _one(tokenizer.bos_id if config.beginning_of_text else None, dtype)
        self._after = _one(tokenizer.eos_id if config.end_of_text else None, dtype)
        self._controls = _Marked(tokenizer.special_ids, tokenizer.vocab_size)
        # The fast encoder turns every spelling into its token, that of unknown text included.
        spelled = tokenizer.special_ids.union(tokenizer.special_spellings.values())
        self._spelled = _Marked(spelled, tokenizer.vocab_size)

    def encode(self, values: Sequence[Value]) -> Encoded:
        """Encode a block of documents, each a text or a list: its sentences, or its parts.

        BOS and EOS stand around the sentences of a document together, around each of its parts.

        A text that gives no ids gives no sequence, and a document without a sequence has neither
        BOS nor EOS: so Megatron-LM's preprocessing does.

        Raises:
            DataError: The tokenizer makes control tokens of ordinary text.
        """
        texts, sentences = _flatten(values)
        if self._fast is None:
            pieces, spelled, text_bytes = self._encode_slowly(texts)
            joined = self._join(pieces, sentences)
        else:
            pieces, text_bytes = self._encode_fast(texts)
            spelled = {}
            joined = self._join(pieces, sentences)
            if self._spelled.count(joined.ids) == joined.added:  # so it is nearly always
                return joined.encoded(text_bytes, spelled)
            spelled = self._settle(texts, pieces)
            joined = self._join(pieces, sentences)
        if self._policy != "keep" and self._controls.count(joined.ids) != joined.added:
            raise DataError(
                "this tokenizer makes control tokens out of ordinary text",
                where=self._tokenizer.folder,
                fix="Use a byte-level BPE tokenizer, or train one from the corpus.",
            )
        if sentences is not None:
            spelled = _by_document(spelled, sentences)
        return joined.encoded(text_bytes, spelled)

    def _encode_fast(self, texts: list[str]) -> tuple[list[Ids], int]:
        """Ids of each text, special spellings as control tokens, and the bytes of all texts."""
        assert self._fast is not None
        before = self._fast.text_bytes
        pieces: list[Ids] = [self._fast.encode(text) for text in texts]
        return pieces, self._fast.text_bytes - before

    def _encode_slowly(self, texts: list[str]) -> tuple[list[Ids], dict[int, int], int]:
        count = self._tokenizer.count_special_spellings
        spelled = {i: n for i, text in enumerate(texts) if (n := count(text))}
        batch = self._tokenizer.encode_batch(texts, keep_special=self._policy == "keep")
        pieces: list[Ids] = [np.array(ids, dtype=self.dtype) for ids in batch]
        return pieces, spelled, sum(len(text.encode()) for text in texts)

    def _settle(self, texts: list[str], pieces: list[Ids]) -> dict[int, int]:
        """Find the texts that spell special tokens; under `text`, encode these by the reference."""
        count = self._tokenizer.count_special_spellings
        spelled = {}
        for i, piece in enumerate(pieces):
            if self._spelled.count(piece):
                # Unknown text gives a token that a spelling gives too: the text decides.
                number = max(count(texts[i]), self._controls.count(piece))
                if number:
                    spelled[i] = number
        if self._policy == "text":
            hits = list(spelled)
            batch = self._tokenizer.encode_batch([texts[i] for i in hits])
            for i, ids in zip(hits, batch, strict=True):
                pieces[i] = np.array(ids, dtype=self.dtype)
        elif self._policy == "reject":
            for i in spelled:
                pieces[i] = pieces[i][:0]  # the row goes away
        return spelled

    def _join(self, pieces: list[Ids], sentences: list[int] | None) -> "_Joined":
        """Put the ids of all documents, with BOS and EOS, one after another."""
        before, after = self._before, self._after
        documents = 0  # texts with BOS and EOS of their own
        sequences: list[int] | None = None
        if sentences is None:
            filled = [piece for piece in pieces if len(piece)]
            lengths = [len(piece) + len(before) + len(after) for piece in filled]
            parts = [part for piece in filled for part in (before, piece, after)]
            documents = len(filled)
            if documents != len(pieces):
                sequences = [int(len(piece) > 0) for piece in pieces]
        else:
            lengths, parts, sequences, place = [], [], [], 0
            for count in sentences:
                filled = [piece for piece in pieces[place : place + count] if len(piece)]
                place += count
                sizes = [len(piece) for piece in filled]
                if self._apart:
                    sizes = [len(before) + size + len(after) for size in sizes]
                    parts += [part for piece in filled for part in (before, piece, after)]
                    documents += len(filled)
                elif filled:
                    sizes[0] += len(before)
                    sizes[-1] += len(after)
                    parts += [before, *filled, after]
                    documents += 1
                lengths += sizes
                sequences.append(len(sizes))
        empty = np.empty(0, dtype=self.dtype)
        ids = np.concatenate([empty, *parts], dtype=self.dtype, casting="unsafe")
        return _Joined(ids, lengths, sequences, documents * (len(before) + len(after)))


@dataclass(frozen=True)
class _Joined:
    """All documents of a block; `added` of the ids are BOS and EOS that we put in."""

    ids: Ids
    lengths: list[int]
    sequences: list[int] | None
    added: int

    def encoded(self, text_bytes: int, spelled: dict[int, int]) -> Encoded:
        return Encoded(self.ids, self.lengths, self.sequences, text_bytes, spelled)


class _Marked:
    """Counts how many ids of an array are among some marked ones."""

    def __init__(self, marked: Collection[int], vocab_size: int) -> None:
        self._numbers = sorted(marked)
        self._table = np.zeros(vocab_size, dtype=bool)
        self._table[self._numbers] = True

    def count(self, ids: Ids) -> int:
        if len(self._numbers) <= _FEW:  # comparing is several times faster than looking up
            return sum(int(np.count_nonzero(ids == number)) for number in self._numbers)
        return int(np.count_nonzero(self._table[ids]))


def _one(number: int | None, dtype: "np.dtype[np.integer]") -> Ids:
    return np.array([] if number is None else [number], dtype=dtype)


def _flatten(values: Sequence[Value]) -> tuple[list[str], list[int] | None]:
    """Texts one after another; the number of them in each document, where one is a list."""
    if all(isinstance(value, str) for value in values):
        return list(values), None  # type: ignore[arg-type]
    lists = [texts_of(value) for value in values]
    return [text for texts in lists for text in texts], [len(texts) for texts in lists]


def _by_document(spelled: dict[int, int], sentences: list[int]) -> dict[int, int]:
    owners = np.repeat(np.arange(len(sentences)), sentences)
    counts: dict[int, int] = {}
    for text, number in spelled.items():
        counts[int(owners[text])] = counts.get(int(owners[text]), 0) + number
    return counts
