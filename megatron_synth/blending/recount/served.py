"""The count: windows come in, step by step and phase by phase; what is wrong goes to a list."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_synth.blending.plan import Plan, PlannedCorpus
from megatron_synth.blending.recount.amounts import check_totals
from megatron_synth.blending.recount.book import Book, Positions
from megatron_synth.blending.recount.corpus import CorpusCount, Faults
from megatron_synth.blending.recount.exposure import ServedCorpus
from megatron_synth.blending.recount.plan import check_ledger, check_shares, told
from megatron_synth.blending.recount.windows import Samples, numbers


class Recount:
    """All that is counted.

    Args:
        prefixes: Path of each corpus, where the plan's own is not to be used.
        exposure: Count served tokens by document, too.
        known: The first phase that is served is the run's first: nothing was served before.

    Attributes:
        faults: What is wrong.
    """

    def __init__(self, prefixes: Mapping[str, str | Path], *, exposure: bool, known: bool) -> None:
        self.faults = Faults()
        self._prefixes, self._exposure, self._known = prefixes, exposure, known
        self._corpora: dict[str, CorpusCount] = {}

    def begin_phase(self, plan: Plan) -> dict[int, Positions | NDArray[np.int32]]:
        """Check the plan itself, and go on with its windows.

        Returns:
            By `dataset_id`, what to serve positions from.
        """
        self._plan = plan
        self._so_far = np.zeros(len(plan.corpora), dtype=np.int64)
        check_totals(plan, self.faults.add)
        for corpus in plan.corpora:
            counted = self._corpora.get(corpus.name)
            if counted is None and corpus.windows:
                counted = self._open(corpus)
            elif counted is None:
                self._expect_start(corpus, 0)
            else:
                self._expect_start(corpus, counted.count.ever)
                counted.begin_phase()
            if counted is not None:
                counted.check(corpus, plan.sequence_length)
        return {
            index: self._corpora[corpus.name].book.positions()
            for index, corpus in enumerate(plan.corpora)
            if corpus.windows
        }

    def steps(self, first: int, positions: Samples, served: Samples | None) -> None:
        """Whole steps, the first of which is number `first` (from 0) of the phase.

        Args:
            first: The number.
            positions: The samples, every token its position.
            served: The samples as they are trained on; None: look at positions alone.
        """
        size, corpora = self._plan.global_batch_size, len(self._plan.corpora)
        ids = numbers(positions, "dataset_id")
        if served is not None and not np.array_equal(ids, numbers(served, "dataset_id")):
            self.faults.add(f"steps {first + 1} and on: dataset_id is not the same twice")
        by_step = np.bincount(
            np.arange(len(ids)) // size * corpora + ids, minlength=len(ids) // size * corpora
        ).reshape(-1, corpora)
        check_shares(self._plan, by_step, first, self._so_far, self.faults.add)
        self._so_far += by_step.sum(axis=0)
        for index in np.unique(ids).tolist():
            rows = np.flatnonzero(ids == index).tolist()
            self._corpora[self._plan.corpora[index].name].serve(
                [positions[row] for row in rows],
                None if served is None else [served[row] for row in rows],
                self._plan.attention,
            )

    def alone(self, one: Mapping[str, Any], other: Mapping[str, Any], number: int) -> None:
        """A sample that was served with others, and the same one fetched alone."""
        same = one.keys() == other.keys() and all(
            torch.equal(value, other[name])
            if isinstance(value, torch.Tensor)
            else value == other[name]
            for name, value in one.items()
        )
        if not same:
            self.faults.add(f"sample {number} is another one when it is fetched alone")

    def compare(self, account: Mapping[str, Any], step: int) -> None:
        """The ledger at `step` of this phase against what was counted."""
        counts = [
            self._corpora[c.name].count
            if c.name in self._corpora
            else told(c.tokens, 0 if self._known else c.start, self._plan.sequence_length)
            for c in self._plan.corpora
        ]
        check_ledger(self._plan, account, step, counts, self.faults.add)

    def end_phase(self, *, finished: bool) -> None:
        """Look at epochs that go on, and after the last step at the plan's totals."""
        for corpus in self._plan.corpora:
            counted = self._corpora.get(corpus.name)
            windows = counted.count.windows if counted else 0
            if counted is not None:
                counted.look()
            if finished and windows != corpus.windows:
                self.faults.add(
                    f"{corpus.name}: {windows} windows served, {corpus.windows} planned"
                )

    def counted(self) -> tuple[dict[str, dict[str, int | float]], dict[str, dict[str, int]]]:
        """By corpus and by stream of the last phase, what was counted (see `Audit`)."""
        corpora: dict[str, dict[str, int | float]] = {}
        streams: dict[str, dict[str, int]] = {}
        for corpus in self._plan.corpora:
            stream = streams.setdefault(corpus.stream, {"windows": 0, "tokens": 0})
            if not corpus.windows or corpus.name not in self._corpora:
                continue
            count = self._corpora[corpus.name].count
            tokens = count.windows * self._plan.sequence_length
            corpora[corpus.name] = {
                "windows": count.windows,
                "tokens": tokens,
                "epochs": count.epochs,
                "documents_begun": count.begun,
                "dropped_tokens": count.dropped,
            }
            stream["windows"] += count.windows
            stream["tokens"] += tokens
        return corpora, streams

    def exposed(self) -> Iterator[ServedCorpus]:
        """Tokens served of each document of each corpus."""
        for corpus in self._corpora.values():
            assert corpus.served is not None
            yield corpus.served

    def _open(self, corpus: PlannedCorpus) -> CorpusCount:
        prefix = self._prefixes.get(corpus.name, corpus.source.data if corpus.source else None)
        book = Book(prefix or "", corpus)
        if self._known:
            self._expect_start(corpus, 0)
        start = 0 if self._known else corpus.start
        opened = CorpusCount(corpus, book, self._plan, start, self._exposure, self.faults)
        self._corpora[corpus.name] = opened
        return opened

    def _expect_start(self, corpus: PlannedCorpus, ever: int) -> None:
        if corpus.start != ever and (self._known or corpus.name in self._corpora):
            self.faults.add(
                f"{corpus.name}: the phase begins at window {corpus.start}, {ever} were served "
                "before it"
            )
