"""The windows of one corpus, as a Megatron-Core dataset."""

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, Protocol, Self

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_config import BlendedMegatronDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.datasets.utils import Split
from numpy.typing import NDArray

from megatron_synth.blending import kernels
from megatron_synth.blending.documents import Documents, Index, open_documents
from megatron_synth.blending.epochs import EpochOrder, Pieces, is_ready
from megatron_synth.blending.index_files import IndexFolder
from megatron_synth.blending.plan import Plan, PlannedCorpus
from megatron_synth.config import RunError
from megatron_synth.packing.reader import IndexedReader
from megatron_synth.runs import get_logger

_EPOCHS_KEPT = 2  # windows of two epochs meet in a batch

Int64s = NDArray[np.int64]
Sample = dict[str, torch.Tensor | int]


class TokenSource(Protocol):
    """What windows are read from: the tokens of a `.bin`, or what an audit has in their place."""

    def __getitem__(self, tokens: slice, /) -> NDArray[np.integer]:
        """Tokens `tokens.start` to `tokens.stop` - 1."""


class CorpusWindows(MegatronDataset):  # type: ignore[misc]
    """Window n of a corpus, for any n: strict epochs, each in its own order.

    Item n is Megatron-Core's sample dict (see `BlendedStreams`), without `dataset_id`.

    Args:
        dataset: The opened `.bin`/`.idx`.
        path: Its path prefix.
        plan: The plan.
        corpus: The corpus's line of the plan.
        folder: Where the node keeps indices.
    """

    def __init__(
        self,
        dataset: IndexedDataset,
        path: Path,
        plan: Plan,
        corpus: PlannedCorpus,
        folder: IndexFolder | None = None,
    ) -> None:
        config = BlendedMegatronDatasetConfig(
            random_seed=plan.seed,
            sequence_length=plan.sequence_length,
            blend=([str(path)], None),
            split="1,0,0",
        )
        count = corpus.start + corpus.windows
        every_document = np.empty(0, dtype=np.int64)
        super().__init__(dataset, str(path), every_document, count, Split.train, config)
        self.name = corpus.name
        self._corpus = corpus
        self._seed = plan.seed
        self._sequence_length = plan.sequence_length
        self._document_masked = plan.attention == "document"
        self._folder = folder or IndexFolder()
        self._tokens: TokenSource | None = None
        self._open()

    @property
    def path(self) -> Path:
        """Path prefix of the corpus."""
        return Path(self.dataset_path)

    def __len__(self) -> int:
        """Windows that this and the earlier phases serve."""
        return self._corpus.start + self._corpus.windows

    def __getitem__(self, number: int) -> Sample:
        """Window `number`, counted from the first phase."""
        return self.windows(np.array([number], dtype=np.int64))[0]

    def __getitems__(self, numbers: list[int]) -> list[Sample]:
        """Several windows; their order is computed together, which is faster."""
        return self.windows(np.asarray(numbers, dtype=np.int64))

    def with_tokens(self, tokens: TokenSource) -> Self:
        """The same windows, read from other tokens."""
        other = copy.copy(self)
        other._tokens = tokens
        return other

    def windows(self, numbers: Int64s) -> list[Sample]:
        """The samples of windows `numbers` (int64[n], n >= 1)."""
        text = np.empty((len(numbers), self._sequence_length + 1), dtype=np.int64)
        begun: list[list[int]] = [[] for _ in numbers]
        for here, pieces in self.pieces(numbers):
            part = text if len(here) == len(text) else np.empty((len(here), text.shape[1]), "i8")
            self._read(pieces, part)
            if part is not text:
                text[here] = part
            if self._document_masked:
                for row, starts in zip(here.tolist(), _starts(pieces, len(here)), strict=True):
                    begun[row] = starts
        return self._samples(text, begun)

    def pieces(self, numbers: Int64s) -> Iterator[tuple[Int64s, Pieces]]:
        """What windows `numbers` are made of, epoch by epoch.

        Yields:
            Which of `numbers` are of the epoch, int64[m], and the pieces of these m windows.
        """
        epochs, turns = np.divmod(numbers, self._corpus.windows_per_epoch)
        for epoch in np.unique(epochs).tolist():
            here = np.flatnonzero(epochs == epoch)
            yield here, self._order(epoch).pieces(turns[here])
            if 2 * int(turns[here].max()) >= self._corpus.windows_per_epoch:
                self._prepare(epoch + 1)

    def _order(self, epoch: int) -> EpochOrder:
        draw = self._draw(epoch)
        order = self._orders.pop(draw, None)
        if order is None:
            order = EpochOrder(
                self._documents,
                self._sequence_length,
                seed=self._seed,
                corpus=self.name,
                draw=draw,
            )
            planned = self._corpus.windows_per_epoch
            assert order.windows == planned, f"{order.windows} windows an epoch, {planned} planned"
        self._orders[draw] = order
        if len(self._orders) > _EPOCHS_KEPT:
            self._orders.popitem(last=False)
        return order

    def _draw(self, epoch: int) -> int:
        return epoch if self._corpus.reshuffle else 0

    def _prepare(self, epoch: int) -> None:
        """Build the index of the next epoch in a thread, while this one is served."""
        draw = self._draw(epoch)
        if draw in self._prepared or epoch * self._corpus.windows_per_epoch >= len(self):
            return
        self._prepared.add(draw)
        names: dict[str, Any] = {"seed": self._seed, "corpus": self.name, "draw": draw}
        if not is_ready(self._documents, **names):
            build = partial(_build_ahead, self._documents, self._sequence_length, names)
            Thread(target=build, name=f"epoch {epoch} of {self.name}", daemon=True).start()

    def _read(self, pieces: Pieces, text: Int64s) -> None:
        """Copy the pieces' tokens into `text`, row by row."""
        tokens = self._tokens
        if isinstance(tokens, np.ndarray):
            kernels.copy(tokens, pieces.begin, pieces.length, text)
            return
        assert tokens is not None
        flat, at = text.reshape(-1), 0
        for begin, length in zip(pieces.begin.tolist(), pieces.length.tolist(), strict=True):
            flat[at : at + length] = tokens[begin : begin + length]
            at += length

    def _samples(self, text: Int64s, begun: Sequence[Sequence[int]]) -> list[Sample]:
        """Megatron's convention: labels are the tokens that follow.

        Rows of one tensor each: samples share no element, and are made several times faster.
        """
        count, size = len(text), self._sequence_length
        fields = {
            "tokens": torch.from_numpy(text[:, :-1].copy()),
            "labels": torch.from_numpy(text[:, 1:].copy()),
            "loss_mask": torch.ones(count, size, dtype=torch.float32),
            "position_ids": torch.arange(size).repeat(count, 1),
        }
        rows = zip(*(field.unbind(0) for field in fields.values()), strict=True)
        samples: list[Sample] = [dict(zip(fields, row, strict=True)) for row in rows]
        if self._document_masked:
            for sample, at in zip(samples, begun, strict=True):
                sample.update(keep_apart(at, size))
        return samples

    def _open(self) -> None:
        """Map the tokens, and take what the arithmetic needs from the index."""
        # Not the arrays of Megatron-Core's dataset: it closes its map when it goes, whoever still
        # reads from it; a thread that builds ahead would.
        reader = IndexedReader(self.path, check=False)
        self._tokens = reader.ids(0, reader.tokens)
        self._documents = open_documents(
            Index.of(reader),
            self.path,
            self._corpus.source,
            content=self._corpus.content_hash,
            folder=self._folder,
        )
        self._orders: OrderedDict[int, EpochOrder] = OrderedDict()
        self._prepared: set[int] = set()

    def __getstate__(self) -> dict[str, object]:
        """Without what is mapped and computed: another process opens it for itself."""
        dropped = ("_documents", "_tokens", "_orders", "_prepared")
        return {k: v for k, v in self.__dict__.items() if k not in dropped}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open()


def _build_ahead(documents: Documents, sequence_length: int, names: dict[str, Any]) -> None:
    try:
        EpochOrder(documents, sequence_length, **names)
    except RunError as error:  # it is met again, by all, when the epoch begins
        get_logger(__name__).warning("the next epoch's index could not be built yet: %s", error)


def keep_apart(begun: Sequence[int], size: int) -> Sample:
    """What keeps the tokens of different texts in a window from seeing each other.

    Args:
        begun: Where each text begins, from 0 on; one at the window's last label counts for nothing.
        size: Tokens of the window, S.

    Returns:
        `position_ids` int64[S], anew from 0 in each text; `cu_seqlens` int32[S + 1], where texts
        begin, then S until the end of the array; `max_seqlen`, tokens of the longest.
    """
    starts = torch.tensor([at for at in begun if at < size])
    lengths = torch.diff(starts, append=torch.tensor([size]))
    cu_seqlens = torch.full((size + 1,), size, dtype=torch.int32)
    cu_seqlens[: len(starts)] = starts
    return {
        "position_ids": torch.arange(size) - torch.repeat_interleave(starts, lengths),
        "cu_seqlens": cu_seqlens,
        "max_seqlen": int(lengths.max()),
    }


def _starts(pieces: Pieces, windows: int) -> list[list[int]]:
    """For each window, where in it each piece begins."""
    ends = np.cumsum(pieces.length)
    first = np.searchsorted(pieces.window, np.arange(windows))
    begins = ends - pieces.length
    begins -= begins[first][pieces.window]
    return [part.tolist() for part in np.split(begins, first[1:])]
