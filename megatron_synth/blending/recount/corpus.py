"""What was served of one corpus: its windows, epoch by epoch."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_synth.blending.plan import Plan, PlannedCorpus
from megatron_synth.blending.recount.book import Book, Pieces
from megatron_synth.blending.recount.epoch import EpochCheck
from megatron_synth.blending.recount.exposure import ServedCorpus
from megatron_synth.blending.recount.plan import check_corpus, dropped_in, told
from megatron_synth.blending.recount.windows import (
    Samples,
    check_samples,
    check_text,
    names_of,
    numbers,
    stacked,
    wrong_layout,
)

_FAULTS_SHOWN = 20

Int64s = NDArray[np.int64]


class Faults:
    """The first faults, in words."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def add(self, fault: str) -> None:
        """Note one; all but the first 20 are dropped."""
        if len(self._found) < _FAULTS_SHOWN:
            self._found.append(fault)

    @property
    def shown(self) -> tuple[str, ...]:
        """The first 20."""
        return tuple(self._found)


class CorpusCount:
    """One corpus and its count.

    Args:
        corpus: Its line of the first plan that serves it.
        book: Its data.
        plan: That plan.
        start: Windows of it that were served before, and are not known.
        exposure: Count tokens by document.
        faults: The list.

    Attributes:
        count: What was counted.
        book: Its data.
        served: Tokens by document, if they are counted.
    """

    def __init__(
        self,
        corpus: PlannedCorpus,
        book: Book,
        plan: Plan,
        start: int,
        exposure: bool,
        faults: Faults,
    ) -> None:
        self._name, self.book, self._faults = corpus.name, book, faults
        self._length = plan.sequence_length
        self.count = told(book.count, start, self._length)
        whole = self.count.whole
        self._an_epoch = dropped_in(book.count, self._length)
        self._epoch = EpochCheck(book, self._length, whole, corpus.reshuffle, self._report)
        if whole:
            self._epoch.join(start % whole)
        self.served: ServedCorpus | None = None
        if exposure:
            documents = len(book.starts) - 1
            self.served = ServedCorpus(
                name=corpus.name,
                side_table=Path(f"{book.base}.provenance.parquet"),
                tokens=np.zeros(documents, dtype=np.int64),
                begun=np.zeros(documents, dtype=np.int64),
                meant=book.meant,
            )

    def check(self, corpus: PlannedCorpus, length: int) -> None:
        """Its line of a plan against its data."""
        book = self.book
        check_corpus(corpus, book.count, book.documents, length, self._report)

    def begin_phase(self) -> None:
        """Windows and documents are counted by phase."""
        self.count.windows = self.count.begun = 0

    def serve(self, positions: Samples, served: Samples | None, attention: str) -> None:
        """Windows as positions, and as they are trained on (or None)."""
        count, book = self.count, self.book
        before, rows = count.windows, len(positions)
        count.windows += rows
        traced = stacked(positions, ("tokens", "labels"))
        tokens, labels = traced["tokens"], traced["labels"]
        text = np.concatenate([tokens, labels[:, -1:]], axis=1)
        if tokens.shape[1] != self._length or not count.whole:
            self._report(f"windows of {tokens.shape[1]} tokens; an epoch has {count.whole} windows")
        elif text.min() < 0 or text.max() >= len(book.tokens):
            self._report("reads past the data")
        else:
            self._look(text, labels, served, attention, before)
            return
        count.ever += rows

    def look(self) -> None:
        """Check the joints of the epoch that goes on."""
        self._epoch.chain()

    def _look(
        self, text: Int64s, labels: Int64s, served: Samples | None, attention: str, before: int
    ) -> None:
        book = self.book

        def report(wrong: NDArray[np.bool_], what: str) -> None:
            if wrong.any():
                first = before + int(np.argmax(wrong))
                more = f" ({int(wrong.sum())} such windows)" if wrong.sum() > 1 else ""
                self._faults.add(f"{self._name}, window {first}: {what}{more}")

        off = labels[:, :-1] != text[:, 1:-1]
        if off.any():
            report(off.any(axis=1), "a label is not the token that follows")
        pieces = book.pieces(text)
        check_text(book, pieces, len(text), report)
        if served is not None:
            arrays = stacked(served, names_of(attention))
            wrong = wrong_layout(served, arrays, attention)
            if wrong is None:
                longest = numbers(served, "max_seqlen") if attention == "document" else None
                check_samples(book, text, pieces, arrays, longest, report)
            else:
                self._report(wrong)
        self._count_documents(pieces)
        self._through_epochs(text, pieces)

    def _through_epochs(self, text: Int64s, pieces: Pieces) -> None:
        done = 0
        while done < len(text):
            take = min(len(text) - done, self._epoch.left)
            if take == len(text):
                self._epoch.add(text, pieces)
            else:
                here = slice(*np.searchsorted(pieces.window, [done, done + take]).tolist())
                self._epoch.add(text[done : done + take], Pieces(*(a[here] for a in pieces)))
            done += take
            self.count.ever += take
            if self._epoch.left == 0:
                self._end_epoch()

    def _end_epoch(self) -> None:
        dropped = self._epoch.end()
        if dropped not in (-1, self._an_epoch):
            self._report(f"the epoch dropped {dropped} tokens, not {self._an_epoch}")
        self.count.dropped += self._an_epoch if dropped == -1 else dropped

    def _count_documents(self, pieces: Pieces) -> None:
        ends = np.minimum(pieces.end, pieces.begin + self._length - pieces.offset)
        inputs = ends > pieces.begin
        begun = inputs & (pieces.begin == self.book.starts[pieces.document])
        self.count.begun += int(np.count_nonzero(begun))
        if self.served is not None:
            np.add.at(self.served.tokens, pieces.document[inputs], (ends - pieces.begin)[inputs])
            np.add.at(self.served.begun, pieces.document[begun], 1)

    def _report(self, what: str) -> None:
        self._faults.add(f"{self._name}, window {self.count.windows} or before: {what}")
