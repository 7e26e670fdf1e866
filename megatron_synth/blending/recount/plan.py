"""What the plan and the ledger say, against what a recount has found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_synth.blending.plan import Plan, PlannedCorpus
from megatron_synth.blending.recount.amounts import allowed, windows_in

Report = Callable[[str], None]


@dataclass
class Count:
    """What was counted of one corpus.

    Attributes:
        windows: Windows of this phase.
        ever: Windows of all phases; those before the first that was served are as told.
        whole: Windows an epoch, by the corpus's own length.
        dropped: Tokens left over by the epochs that are over.
        begun: Documents whose first token was an input in this phase.
    """

    windows: int = 0
    ever: int = 0
    whole: int = 0
    dropped: int = 0
    begun: int = 0

    @property
    def epochs(self) -> float:
        """Passes over the corpus in all phases."""
        return self.ever / self.whole if self.whole else 0.0


def dropped_in(tokens: int, length: int) -> int:
    """Tokens of an epoch that are in none of its windows, neither as inputs nor as labels."""
    return tokens - 1 - length * windows_in(tokens, length)


def told(tokens: int, start: int, length: int) -> Count:
    """The count of a corpus of which `start` windows are said to be served already."""
    whole = windows_in(tokens, length)
    over = start // whole if whole else 0
    return Count(ever=start, whole=whole, dropped=over * dropped_in(tokens, length))


def check_corpus(
    corpus: PlannedCorpus, tokens: int, documents: int, length: int, report: Report
) -> None:
    """The corpus's line of the plan against the corpus: counts of what is meant of it."""
    whole = windows_in(tokens, length)
    dropped = dropped_in(tokens, length)
    found = (tokens, documents)
    if found != (corpus.tokens, corpus.documents):
        report(
            f"{tokens} tokens in {documents} documents, {corpus.tokens} in {corpus.documents} "
            "planned"
        )
    if whole != corpus.windows_per_epoch:
        report(f"{whole} windows an epoch, {corpus.windows_per_epoch} planned")
    if dropped != corpus.dropped_per_epoch:
        report(f"{dropped} tokens dropped an epoch, {corpus.dropped_per_epoch} planned")
    if abs(corpus.epochs * whole - corpus.windows) > 1e-6 * whole:
        report(f"the plan says {corpus.epochs} epochs for {corpus.windows} windows")
    most = allowed(corpus, whole)
    if most is not None and corpus.start + corpus.windows > most:
        report(
            f"{corpus.start + corpus.windows} windows planned, max_epochs "
            f"{corpus.max_epochs:g} allows {most}"
        )


def check_shares(
    plan: Plan, served: NDArray[np.int64], first: int, before: NDArray[np.int64], report: Report
) -> None:
    """Each corpus has its share, to within one window, in each step and so far.

    Args:
        plan: The plan.
        served: Windows in each step, int64[steps, corpora].
        first: Steps before these.
        before: Windows in the steps before, int64[corpora].
        report: Told what is wrong.
    """
    due = np.array([corpus.windows for corpus in plan.corpora])
    far = before + np.cumsum(served, axis=0)
    steps = first + 1 + np.arange(len(served))[:, None]
    # In windows x steps, so that nothing is rounded.
    off = np.abs(served * plan.steps - due)
    drift = np.abs(far * plan.steps - due * steps)
    wrong = (np.maximum(off, drift) >= plan.steps) | ((due == 0) & (served != 0))
    for step, index in np.argwhere(wrong).tolist():
        report(
            f"{plan.corpora[index].name}, step {first + step + 1}: {served[step, index]} windows, "
            f"{far[step, index]} so far, of {due[index]} in {plan.steps} steps"
        )


def check_ledger(
    plan: Plan, account: Mapping[str, Any], step: int, counts: Sequence[Count], report: Report
) -> None:
    """The ledger after `step` steps against the counts of the plan's corpora, in their order."""
    length = plan.sequence_length
    streams: dict[str, dict[str, int]] = {}
    for corpus, count in zip(plan.corpora, counts, strict=True):
        said = account["corpora"].get(corpus.name, {})
        found = {
            "stream": corpus.stream,
            "windows": count.windows,
            "tokens": count.windows * length,
            "windows_ever": count.ever,
            "dropped_tokens": count.dropped,
        }
        told = {name: said.get(name) for name in found}
        if told != found:
            report(f"{corpus.name}, step {step}: {found} counted, the ledger says {told}")
        if abs(said.get("epochs", -1) - count.epochs) > 1e-9 * max(1.0, count.epochs):
            report(
                f"{corpus.name}, step {step}: {count.epochs} epochs were served, the ledger says "
                f"{said.get('epochs')}"
            )
        stream = streams.setdefault(corpus.stream, {"windows": 0, "tokens": 0})
        stream["windows"] += count.windows
        stream["tokens"] += count.windows * length
    if account["streams"] != streams:
        report(f"step {step}: streams {streams} counted, the ledger says {account['streams']}")
    samples = sum(count.windows for count in counts)
    told = {name: account[name] for name in ("plan", "step", "samples", "tokens")}
    found = {"plan": plan.hash, "step": step, "samples": samples, "tokens": samples * length}
    if told != found:
        report(f"step {step}: {found} counted, the ledger says {told}")
