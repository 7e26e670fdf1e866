"""The answer in one or two plain sentences, made from the numbers whatever they are."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_synth.report.data import Arm, Range, ReportData
from megatron_synth.report.words import count, percent, plain, signed

_EQUAL_COMPUTE = 0.01
_SBP_SCALE = (
    "The paper that introduced SBP measured its gains with a 3B-parameter model on 200B and 1T "
    "tokens and says that the method cannot be scaled down, since a small model's text may not "
    "even be coherent. What is shown here was measured at the size of this run and holds for it."
)


@dataclass(frozen=True)
class Answer:
    """What came out.

    Attributes:
        headline: One sentence.
        details: Sentences under it: losses, recovery, limits.
    """

    headline: str
    details: tuple[str, ...]


def answer(data: ReportData) -> Answer:
    """State the measured result: better, worse, not distinguishable, or not known yet."""
    baseline = _first(data.arms, "baseline")
    methods = [arm for arm in data.arms if arm.role == "method"]
    if baseline is None or not methods:
        headline = "Not answered yet: the run has no baseline and method to compare."
        return Answer(headline, tuple(data.notes))
    waiting = [arm.title for arm in (baseline, *methods) if arm.loss is None]
    if waiting:
        verb = "has" if len(waiting) == 1 else "have"
        headline = f"Not answered yet: {_join(waiting)} {verb} no held-out loss."
    else:
        headline = " ".join(_compare(arm, baseline) for arm in methods)
    oracle = _first(data.arms, "oracle")
    details = [
        *_losses(data),
        *(sentence for arm in methods for sentence in _recovery(arm, baseline, oracle)),
        *_limits(data, baseline, methods),
        *data.notes,
    ]
    return Answer(headline, tuple(details))


def _compare(arm: Arm, baseline: Arm) -> str:
    difference = arm.difference
    if difference is None:
        return (
            f"{arm.title} and {baseline.title} were both measured, but without a paired interval "
            "their difference cannot be judged."
        )
    if not difference.excludes_zero:
        return (
            f"At this size {arm.title} cannot be told apart from {baseline.title}: the difference "
            f"in held-out loss is {signed(difference.estimate)} nats per token, and its "
            f"{_interval(difference)} includes zero."
        )
    better = difference.estimate < 0
    low, high = sorted((abs(difference.low), abs(difference.high)))
    return (
        f"At this size {arm.title} is {'better' if better else 'worse'} than {baseline.title}: its "
        f"held-out loss is {plain(abs(difference.estimate))} nats per token "
        f"{'lower' if better else 'higher'} "
        f"({percent(difference.confidence)} interval {plain(low)} to {plain(high)})."
    )


def _losses(data: ReportData) -> list[str]:
    measured = [f"{arm.title} {plain(arm.loss)}" for arm in data.arms if arm.loss is not None]
    if not measured:
        return []
    where = ""
    if data.held_out is not None:
        what = data.held_out.description or "held-out documents"
        where = f", on {data.held_out.documents:,} {what} ({count(data.held_out.tokens)} tokens)"
    return [f"Held-out loss, nats per token: {_join(measured)}{where}."]


def _recovery(arm: Arm, baseline: Arm, oracle: Arm | None) -> list[str]:
    if arm.recovery is None:
        if not arm.recovery_note:
            return []
        return [f"Recovery ratio of {arm.title}: not identified. {_ended(arm.recovery_note)}"]
    name = oracle.title if oracle else "the oracle"
    ratio = arm.recovery
    span = f"{percent(ratio.confidence)} interval {percent(ratio.low)} to {percent(ratio.high)}"
    sentence = (
        f"The recovery ratio of {arm.title} is {percent(ratio.estimate)} ({span}): 0\u202f% is "
        f"{baseline.title}, 100\u202f% is {name}, the same budget with fresh organic text."
    )
    gap = oracle.difference if oracle else None
    if gap is not None and gap.low > 0:
        sentence += f" Here {name} is worse than {baseline.title}, so a high ratio is no success."
    return [sentence]


def _limits(data: ReportData, baseline: Arm, methods: Sequence[Arm]) -> list[str]:
    sentences = []
    if baseline.tokens:
        for arm in data.arms:
            if arm.tokens is None or arm is baseline or arm.state != "done":
                continue
            if abs(arm.tokens / baseline.tokens - 1) > _EQUAL_COMPUTE:
                sentences.append(
                    f"Compute is not equal: {arm.title} was trained on {count(arm.tokens)} "
                    f"tokens, {baseline.title} on {count(baseline.tokens)}."
                )
    if any(arm.difference for arm in methods):
        runs = "once" if data.seeds == 1 else f"{data.seeds} times"
        drawn, held_out = "documents", data.held_out
        if held_out and held_out.cluster and held_out.clusters:
            drawn = f"{held_out.cluster}s ({held_out.clusters} of them)"
        sentences.append(
            f"Intervals are over the choice of held-out {drawn}; each arm was trained "
            f"{runs}, and how much the result moves with the seed of training is not in them."
        )
    if any(arm.method == "sbp" for arm in methods):
        sentences.append(_SBP_SCALE)
    return sentences


def _interval(value: Range) -> str:
    return f"{percent(value.confidence)} interval ({signed(value.low)} to {signed(value.high)})"


def _ended(sentence: str) -> str:
    sentence = sentence.strip()
    return sentence if sentence.endswith((".", "!", "?")) else sentence + "."


def _first(arms: Sequence[Arm], role: str) -> Arm | None:
    return next((arm for arm in arms if arm.role == role), None)


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
