"""Serve a plan's windows twice, look at both, and hold the count against plan and ledger."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_synth.blending.ledger import Ledger
from megatron_synth.blending.plan import Plan
from megatron_synth.blending.recount.exposure import write_exposure
from megatron_synth.blending.recount.phases import steps_of, want_chain, want_strict
from megatron_synth.blending.recount.served import Recount
from megatron_synth.blending.streams import BlendedStreams
from megatron_synth.config import ConfigError
from megatron_synth.runs import Progress

_AT_ONCE = 1 << 16  # tokens: arrays of 512 KB stay in the cache, and their memory is used again
_SERVING_FAILS = (AssertionError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
"""What a wrong order may run into."""


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        step: Steps of the plan that were recounted.
        counted: By corpus that the plan trains on, counted from the served windows: `windows`,
            `tokens` (inputs) and `documents_begun` (how often a document's first token was an
            input) of this plan; `epochs` and `dropped_tokens` (remainders of the epochs that are
            over) of all phases, as in the ledger.
        streams: By stream: `windows` and `tokens` of this plan.
        faults: What is wrong, in words, at most 20; empty if all is as the plan says.
        exposure: Summary of `write_exposure`; None if it was not asked for.
    """

    step: int
    counted: dict[str, dict[str, int | float]]
    faults: tuple[str, ...]
    streams: dict[str, dict[str, int]]
    exposure: dict[str, Any] | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def as_json(self) -> dict[str, Any]:
        """For `--json`: passed, step, corpora, streams, faults, exposure."""
        return {
            "passed": self.passed,
            "step": self.step,
            "corpora": self.counted,
            "streams": self.streams,
            "faults": list(self.faults),
            "exposure": self.exposure,
        }


def audit(
    plan: Plan,
    prefixes: Mapping[str, str | Path] | None = None,
    step: int | None = None,
    *,
    before: Sequence[Plan] = (),
    exposure: Path | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Serve the first `step` steps and recount them.

    Checked of the plan: windows and dropped tokens of an epoch, tokens and documents that are
    meant, caps, and that steps and windows are what budget and amounts come to, window for window
    (where two corpora have the same claim to one, either may have it). Of every window: its tokens
    are those of the `.bin` of the corpus that `dataset_id` names; each label is the token after its
    input, in the same document or, after a document's end, the first of another; documents are of
    the selection and follow a fixed order; loss_mask, position_ids, cu_seqlens and max_seqlen. Of
    every epoch: no token is an input or a label twice; windows join to one text; what an epoch left
    out is shorter than a window and ends that text; the next epoch's order is another one, or the
    same, as the plan says. Of every step: each corpus has its share to within one window, in that
    step and in all so far. After steps 1, 3, 7, … and then after every 2**16 tokens or so: ledger
    and counts agree in all their figures, and a sample fetched alone is the one fetched with
    others.

    An epoch that earlier phases began can be checked as a whole only if they are told: their
    windows are then served first, positions alone, and no window may be lost or served twice where
    a phase begins. What is *not* found: a budget or amount that is not the one in the user's file
    (the plan's own wording is taken), and, without `before`, windows that a phase repeats of the
    one before.

    Costs the time to serve the windows twice, one bit of memory for each token of the corpora, 8
    bytes a document (16 more for the exposure) and 32 bytes a window of an epoch.

    Args:
        plan: The plan.
        prefixes: As `BlendedStreams`.
        step: How far; all steps of the plan if None.
        before: Plans of the phases before, in their order; the last is the one that `plan` goes
            on from. They are served up to the step after which the next goes on.
        exposure: Where to write which organic source was trained on how often (Parquet, see
            `write_exposure`), in all phases that were served.
        progress: Told how many windows were served.

    Raises:
        ConfigError: The plan has the stock order; `step` is not one of it; `before` is not the
            chain of its phases; or as `BlendedStreams`.
        DataError: As `BlendedStreams`; or a side table does not fit its corpus.
    """
    want_strict(plan)
    last = plan.steps if step is None else step
    if not 0 <= last <= plan.steps:
        raise ConfigError(f"the plan has steps 0 to {plan.steps:,}, not {last:,}")
    want_chain([*before, plan])
    if exposure is not None and not exposure.absolute().parent.is_dir():
        raise ConfigError(
            "no such folder", where=exposure.parent, fix="Make it, or write elsewhere."
        )
    progress = progress or Progress()
    recount = Recount(prefixes or {}, exposure=exposure is not None, known=_is_first(before, plan))
    for number, phase in enumerate([*before, plan], start=1):
        steps = last if phase is plan else steps_of(phase, [*before, plan][number])
        name = "recounting the served windows"
        if before:
            name += f", phase {number} of {len(before) + 1}"
        progress.phase(name, steps * phase.global_batch_size, "windows")
        _serve(phase, prefixes, steps, recount, progress, real=phase is plan)
    counted, streams = recount.counted()
    summary = None
    if exposure is not None:
        progress.phase("tracing tokens to their sources")
        summary = write_exposure(recount.exposed(), exposure)
    return Audit(last, counted, recount.faults.shown, streams, summary)


def _is_first(before: Sequence[Plan], plan: Plan) -> bool:
    return (before[0] if before else plan).previous is None


def _serve(
    plan: Plan,
    prefixes: Mapping[str, str | Path] | None,
    steps: int,
    recount: Recount,
    progress: Progress,
    *,
    real: bool,
) -> None:
    """Serve and count the first `steps` steps of one phase."""
    size = plan.global_batch_size
    most = max(1, _AT_ONCE // (plan.sequence_length * size))
    try:
        streams, ledger = BlendedStreams(plan, prefixes), Ledger(plan)
    except _SERVING_FAILS as error:
        recount.begin_phase(plan)
        recount.faults.add(f"the plan cannot be served: {error!r}")
        return
    traced = streams.with_tokens(recount.begin_phase(plan))
    done = 0
    while done < steps:
        first, done = done, min(2 * done + 1, done + most, steps)  # few at first: see `compare`
        samples = list(range(first * size, done * size))
        try:
            positions = traced.__getitems__(samples)
            served = streams.__getitems__(samples) if real else None
            recount.steps(first, positions, served)
            if served is not None:
                recount.alone(served[-1], streams[samples[-1]], samples[-1])
            recount.compare(ledger.at(done), done)
        except _SERVING_FAILS as error:
            recount.faults.add(f"steps {first + 1} to {done} cannot be served: {error!r}")
            return
        progress.update(done * size)
    if not steps:
        recount.compare(ledger.at(0), 0)
    recount.end_phase(finished=steps == plan.steps)
