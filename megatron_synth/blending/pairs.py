"""Synthesizer tuning: windows of related pairs, loss on the second document only."""

from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_synth.blending.bijection import Bijection, derive_key
from megatron_synth.blending.pair_documents import PairDocuments, read_pairs
from megatron_synth.blending.sizes import corpus_size, path_prefix
from megatron_synth.blending.windows import Sample, keep_apart
from megatron_synth.config import ConfigError, DataError
from megatron_synth.runs import get_logger, hash_file, hash_json

PairsPerWindow = Literal["one", "packed"]
Attention = Literal["cross", "document"]

_CHUNK = 1 << 20
_log = get_logger(__name__)


class PairWindows(torch.utils.data.Dataset[Sample]):
    """Samples of `d1 separator d2 EOS`, with loss on d2 and its EOS only (SBP, step 4).

    Item i is the sample dict of `BlendedStreams` (`dataset_id` 0): pairs end to end, then EOS up
    to S + 1 tokens. `loss_mask` is 1 where the label is one of d2's tokens or the EOS that ends it
    (the separator predicts d2's first token), 0 on d1, the separator and the padding; also where
    the EOS of one pair is followed by the next: no label with loss has its input in another pair.
    Where packing put BOS before each document, d1 keeps its own and d2's is left out: one text has
    one BOS.

    With `pairs_per_window` "one", a window holds one pair, and most of it may be padding. With
    "packed" it holds as many whole pairs as fit S + 1 tokens (the last EOS may be a label only):
    bins are filled once, by best-fit decreasing, from a drawn order that decides which of equally
    long pairs meet. Windows are the same in every epoch, in another order.

    With attention "document" pairs (d1 and d2 together) and the padding do not see each other:
    `cu_seqlens`, `max_seqlen` and `position_ids` are those of `BlendedStreams`, with pairs in the
    place of documents.

    Strict epochs: item i is window i % windows of the permutation of epoch i // windows, so every
    pair comes exactly once an epoch.

    It can be pickled: 8 bytes a pair, and for packed ones 8 a window, go to another process.

    Args:
        prefix: The corpus, packed with one EOS at the end of each document; with or without
            `_text_document`.
        pairs_file: Parquet with integer columns `d1` and `d2`, indices into the `.idx`; other
            columns (`similarity`) are not read.
        sequence_length: S. Both documents, separator and EOS must fit, or the pair is left out.
        eos_id: The token that ends documents.
        separator_id: The token between d1 and d2.
        pairs_per_window: "one" or "packed".
        attention: "cross" or "document"; None: "document" for packed pairs, else "cross".
        seed: Draws bins and order.
        samples: Items to serve; one epoch if None.

    Attributes:
        pairs: Pairs that fit.
        dropped: Pairs left out because they do not fit.
        windows: Windows an epoch.
        padding_share: Share of positions that hold padding, or an EOS that no loss follows.
        hash: Names what decides every sample: content of corpus and pairs, ids, S, seed, settings.

    Raises:
        ConfigError: separator_id equals eos_id, or an unknown setting.
        DataError: Missing or damaged files, documents of several sequences, an index out of range
            or of an empty document, or no pair that fits.
    """

    def __init__(
        self,
        prefix: str | Path,
        pairs_file: Path,
        *,
        sequence_length: int,
        eos_id: int,
        separator_id: int,
        pairs_per_window: PairsPerWindow = "one",
        attention: Attention | None = None,
        seed: int = 0,
        samples: int | None = None,
    ) -> None:
        if separator_id == eos_id:
            raise ConfigError(f"separator_id and eos_id are both {eos_id}; they must differ")
        packed = _one_of("pairs_per_window", pairs_per_window, PairsPerWindow) == "packed"
        attention = attention or ("document" if packed else "cross")
        self._by_pair = _one_of("attention", attention, Attention) == "document"
        path = path_prefix(prefix)
        content = corpus_size(path).content_hash
        self._documents = PairDocuments(path, eos_id)
        self._length, self._seed = sequence_length, seed
        self._eos, self._separator = eos_id, separator_id
        self._pairs, sizes, self.dropped = self._fitting(pairs_file)
        self.pairs = self.windows = len(self._pairs)
        self._starts: NDArray[np.int64] | None = None  # of windows in _pairs; None: one pair each
        if packed:
            self._pairs, self._starts = _pack(self._pairs, sizes, sequence_length + 1, seed)
            self.windows = len(self._starts) - 1
        inputs = float((sizes - 1).mean()) * (self.pairs / self.windows)
        self.padding_share = 1 - inputs / sequence_length
        self.samples = self.windows if samples is None else samples
        bos = self._documents.bos_id
        # Where it is not named, it is "one" and "cross": what a hash without it has always meant.
        layout = {"pairs_per_window": "packed"} if packed else {}
        if packed or self._by_pair:
            layout["attention"] = attention
        self.hash = hash_json(
            {
                "corpus": content,
                "pairs": hash_file(pairs_file),
                "ids": [eos_id, separator_id, *([] if bos is None else [bos])],
                "sequence_length": sequence_length,
                "seed": seed,
                **layout,
            }
        )
        _log.info(
            "%s: %d pairs in %d windows, %d dropped (over %d tokens), %.1f %% padding",
            *(pairs_file, self.pairs, self.windows, self.dropped, sequence_length),
            100 * self.padding_share,
        )

    def __len__(self) -> int:
        """Samples."""
        return self.samples

    def pairs_of(self, sample: int) -> list[tuple[int, int]]:
        """Document indices (d1, d2) of the pairs in sample `sample`, as they lie there."""
        epoch, turn = divmod(sample, self.windows)
        order = Bijection(self.windows, derive_key(self._seed, "pairs", epoch))
        window = int(order(np.array([turn]))[0])
        first, after = window, window + 1
        if self._starts is not None:
            first, after = self._starts[window : window + 2].tolist()
        return [(d1, d2) for d1, d2 in self._pairs[first:after].tolist()]

    def __getitem__(self, sample: int) -> Sample:
        """Sample `sample`; IndexError past the end, DataError for a document without EOS or BOS."""
        if not 0 <= sample < self.samples:
            raise IndexError(f"sample {sample} of {self.samples}")
        text = np.full(self._length + 1, self._eos, dtype=np.int64)
        loss_mask = torch.zeros(self._length, dtype=torch.float32)
        borders = [0]
        for first, second in self.pairs_of(sample):
            d1, d2 = self._documents.tokens(first), self._documents.tokens(second)
            if self._documents.bos_id is not None:
                d2 = d2[1:]
            at = borders[-1]
            begin = at + len(d1) + 1  # of d2
            end = begin + len(d2) + 1  # after the EOS
            text[at : begin - 1] = d1
            text[begin - 1] = self._separator
            text[begin : end - 1] = d2
            loss_mask[begin - 1 : end - 1] = 1
            borders.append(end)
        tokens = torch.from_numpy(text)
        sample_dict: Sample = {
            "tokens": tokens[:-1].clone(),
            "labels": tokens[1:].clone(),
            "loss_mask": loss_mask,
            "position_ids": torch.arange(self._length),
            "dataset_id": 0,
        }
        return {**sample_dict, **(keep_apart(borders, self._length) if self._by_pair else {})}

    def _fitting(self, path: Path) -> tuple[NDArray[np.integer], NDArray[np.int64], int]:
        """Pairs that fit S, int[pairs, 2]; their tokens, int64[pairs]; how many do not fit."""
        lengths = self._documents.lengths()
        pairs = read_pairs(path, lengths)
        # The separator takes the place of d1's EOS.
        sizes = np.add(lengths[pairs[:, 0]], lengths[pairs[:, 1]], dtype=np.int64)
        sizes -= self._documents.bos_id is not None  # of d2
        fits = sizes <= self._length
        kept = int(np.count_nonzero(fits))
        if not kept:
            raise DataError(
                f"none of {len(pairs):,} pairs fits {self._length:,} tokens; the smallest takes "
                f"{int(sizes.min()):,}",
                where=path,
                fix="Raise sequence_length, or pair shorter documents.",
            )
        if kept < len(pairs):
            return pairs[fits], sizes[fits], len(pairs) - kept
        return pairs, sizes, 0


def _pack(
    pairs: NDArray[np.integer], sizes: NDArray[np.int64], capacity: int, seed: int
) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """The pairs window by window, and where each window begins in them, int64[windows + 1]."""
    from megatron_synth.blending.pair_packing import pack_whole  # numba, for packed pairs only

    draw = Bijection(len(pairs), derive_key(seed, "pair packing"))
    drawn = np.empty(len(pairs), dtype=np.int32 if len(pairs) < 1 << 31 else np.int64)
    for start in range(0, len(pairs), _CHUNK):
        drawn[start : start + _CHUNK] = draw(np.arange(start, min(start + _CHUNK, len(pairs))))
    bins = pack_whole(sizes[drawn].astype(np.int32), capacity)
    return pairs[drawn[bins.items]], bins.starts


def _one_of(name: str, value: str, known: object) -> str:
    """`value`, if it is one of the Literal `known`; ConfigError if not."""
    if value not in get_args(known):
        names = " and ".join(get_args(known))
        raise ConfigError(f"{value!r} is not known", where=name, fix=f"Known are {names}.")
    return value
