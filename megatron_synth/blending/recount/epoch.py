"""One epoch of a corpus, as it is served: nothing twice, nothing lost, one order."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from megatron_synth.blending.recount.bits import Seen
from megatron_synth.blending.recount.book import Book, Pieces

_MANY = 21  # 1 / 21! = 2e-20: so many things never come in the same order by chance

Int64s = NDArray[np.int64]


class EpochCheck:
    """The epoch that a corpus is in; one object serves epoch after epoch.

    Costs one bit a token of the `.bin`, and 32 bytes a window of an epoch.

    The last label of a window is the first input of the window that follows it in the epoch's
    text. So last labels and first inputs must be the same tokens, but for the text's first token,
    which nothing predicts, and the last label, which is no input; and this shows at the end of
    an epoch that every other token was predicted just once.

    Args:
        book: The corpus.
        length: Tokens a window, S.
        whole: Windows an epoch.
        reshuffle: Whether each epoch has an order of its own.
        report: Told what is wrong.
    """

    def __init__(
        self, book: Book, length: int, whole: int, reshuffle: bool, report: Callable[[str], None]
    ) -> None:
        self._book, self._length, self._whole = book, length, whole
        self._reshuffle, self._report = reshuffle, report
        self._before: tuple[Int64s, int, int] | None = None  # of the epoch before: see `_order`
        self._begin(midway=0)
        self._fresh = True

    @property
    def left(self) -> int:
        """Windows until the epoch is over."""
        return self._left

    def join(self, served: int) -> None:
        """Begin in the middle of an epoch, of which `served` windows are not known."""
        self._begin(midway=served)

    def add(self, text: Int64s, pieces: Pieces) -> None:
        """Windows of this epoch: positions int64[windows, S + 1], and the same taken apart."""
        # The text's last token is a label only.
        ends = np.minimum(pieces.end, pieces.begin + self._length - pieces.offset)
        twice = self._seen.mark(pieces.begin, ends)
        if twice:
            self._report(f"{twice} tokens served before in the same epoch")
        self._firsts.append(text[:, 0].copy())
        self._lasts.append(text[:, -1].copy())
        joint = pieces.window[1:] == pieces.window[:-1]
        self._digest ^= _digest(pieces.document[:-1][joint], pieces.document[1:][joint])
        self._borders += int(np.count_nonzero(joint))
        self._left -= len(text)

    def end(self) -> int:
        """Look back at the epoch, which is over, and begin the next.

        Returns:
            Tokens that were neither inputs nor labels; -1 if the epoch is not known from its
            beginning.
        """
        dropped = self._end_of_whole() if self._whole_known else -1
        self._begin(midway=0)
        return dropped

    def chain(self) -> Int64s:
        """Check the windows' joints so far; returns last labels that are nobody's first input."""
        firsts = np.concatenate([np.empty(0, np.int64), *self._firsts])
        lasts = np.concatenate([np.empty(0, np.int64), *self._lasts])
        loose = np.setdiff1d(lasts, firsts)
        twice = len(lasts) - len(np.unique(lasts))
        if twice:
            self._report(f"{twice} tokens are labels twice in the same epoch")
        inside = int(np.count_nonzero(self._seen.has(loose)))
        if inside:
            self._report(f"{inside} windows end inside another window of the same epoch")
        return loose

    def _begin(self, midway: int) -> None:
        self._left = self._whole - midway
        self._whole_known = midway == 0
        self._firsts: list[Int64s] = []
        self._lasts: list[Int64s] = []
        self._digest, self._borders = 0, 0
        self._seen = Seen(len(self._book.tokens))
        self._seen.mark(*self._book.unmeant())

    def _end_of_whole(self) -> int:
        loose = self.chain()
        count, missing = self._seen.missing(self._length + 2)
        if count > self._length:
            self._report(f"the epoch left out {count} tokens")
        else:
            self._check_rest(missing, loose)
        self._order(np.concatenate(self._firsts))
        return count - len(loose)

    def _check_rest(self, missing: Int64s, loose: Int64s) -> None:
        """What was left out ends the order: the end of one document, and whole documents."""
        book = self._book
        if len(loose) != 1 or not np.isin(loose, missing).all():
            self._report("the epoch's last label is not the first of the tokens left out")
            return
        document = book.document_of(missing)
        first = np.flatnonzero(np.diff(document, prepend=-1))
        begin, end = missing[first], missing[np.append(first[1:], len(missing)) - 1] + 1
        whole = end - begin == np.diff(np.append(first, len(missing)))  # without gaps
        cut = begin != book.starts[document[first]]
        rest = whole & (end == book.starts[document[first] + 1])
        if not rest.all() or cut.sum() > 1 or (cut.any() and begin[cut][0] != loose[0]):
            self._report("the epoch left out tokens that are not its last ones")
        elif not (loose[0] == begin).any():
            self._report("the epoch's last label is not the first of the tokens left out")
        if book.place is not None:
            places = np.sort(book.place[document[first]])
            if not np.array_equal(places, np.arange(book.full - len(places), book.full)):
                self._report("the epoch left out documents that are not the last of the order")
        head = np.setdiff1d(np.concatenate(self._firsts), np.concatenate(self._lasts))
        of = book.document_of(head)
        if not np.array_equal(head, book.starts[of]):
            self._report("the epoch does not begin with a document")
        elif book.place is not None and not np.array_equal(book.place[of], [0]):
            self._report("the epoch does not begin with the first document of the order")

    def _order(self, firsts: Int64s) -> None:
        """The same order as in the epoch before, or another, as the plan says."""
        before, self._before = self._before, (firsts, self._digest, self._borders)
        if before is None:
            return
        same_windows = np.array_equal(before[0], firsts)
        same_documents = before[1:] == (self._digest, self._borders)
        if not self._reshuffle:
            if not (same_windows and same_documents):
                self._report("the epoch has another order than the one before; reshuffle is off")
            return
        if same_windows and len(firsts) >= _MANY:
            self._report("the epoch has the order of the one before; reshuffle is on")
        elif same_documents and self._borders >= _MANY and self._book.place is None:
            self._report("the epoch has the documents' order of the one before; reshuffle is on")


def _digest(first: Int64s, second: Int64s) -> int:
    """A number for which document follows which, whatever order the pairs come in."""
    mixed = first.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= second.astype(np.uint64) + (mixed >> np.uint64(29))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0x94D049BB133111EB)
    return int(np.bitwise_xor.reduce(mixed)) if len(mixed) else 0
