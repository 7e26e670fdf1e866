"""The windows that a plan's amounts come to, worked out anew from the amounts in words.

A second reading of docs/blending.md ("Amounts", "Rounding"), on purpose without the planner's
code. Where two corpora have the same claim to a window, either may have it: the documents do not
say which.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from megatron_synth.blending.plan import Plan, PlannedCorpus

_RELUCTANCE = ("share", "tokens", "epochs")  # what gives way first where rounding left too much


def windows_in(tokens: int, length: int) -> int:
    """Windows of an epoch: as many as can be laid out with their last label."""
    return len(range(0, tokens - length, length))


def check_totals(plan: Plan, report: Callable[[str], None]) -> None:
    """Steps and windows of the plan come to the same, and to what the amounts come to."""
    size, length = plan.global_batch_size, plan.sequence_length
    windows = sum(corpus.windows for corpus in plan.corpora)
    if windows != plan.steps * size:
        report(f"{windows} windows are planned for {plan.steps} steps of {size}")
    if (plan.samples, plan.tokens) != (windows, windows * length):
        report(f"the plan says {plan.samples} samples, {plan.tokens} tokens; windows: {windows}")
    if plan.previous is None and plan.first_step != 0:
        report(f"the first phase goes on after step {plan.first_step}")
    *streams, (_, top) = _divisions(plan)
    steps, why = _steps(plan, top)
    if plan.steps != steps:
        report(f"{plan.steps} steps are planned, {why}")
    for total, claims in (*streams, (plan.steps * size, top)):
        due = _due(claims, total, length)
        for claim in claims:
            if claim.windows != due[claim.name]:
                report(
                    f"{claim.name}: {claim.words} asked for, which comes to {due[claim.name]} "
                    f"windows; {claim.windows} planned"
                )


def allowed(corpus: PlannedCorpus, whole: int) -> int | None:
    """Windows that max_epochs allows in all phases, of `whole` an epoch; None without a cap."""
    cap = corpus.max_epochs
    return None if cap is None else int(Fraction(repr(cap)) * whole)


@dataclass(frozen=True)
class _Claim:
    """What one corpus, or one stream with an amount of its own, asked for and got."""

    name: str
    words: str
    windows: int
    whole: int = 0  # windows an epoch
    room: int | None = None  # windows left under its cap

    @property
    def amount(self) -> tuple[str, Fraction] | None:
        """Kind and number; None: it fills the rest."""
        return _amount(self.words)

    def exact(self, total: int, length: int) -> Fraction:
        """Windows asked for, not rounded, of `total`."""
        assert self.amount is not None
        kind, number = self.amount
        if kind == "tokens":
            return number / length
        return number * (total if kind == "share" else self.whole)


def _divisions(plan: Plan) -> Iterator[tuple[int, list[_Claim]]]:
    """What was divided among whom: each stream's own amount, and last the plan's windows."""
    inside: dict[str, list[_Claim]] = {name: [] for name in plan.streams}
    top: list[_Claim] = []
    for corpus in plan.corpora:
        if corpus.asked == "not in this phase":
            continue
        whole = windows_in(corpus.tokens, plan.sequence_length)
        most = allowed(corpus, whole)
        room = None if most is None else max(0, most - corpus.start)
        claim = _Claim(corpus.name, corpus.asked, corpus.windows, whole, room)
        inside.get(corpus.stream, top).append(claim)
    for name, claims in inside.items():
        total = sum(claim.windows for claim in claims)
        top.append(_Claim(f"stream {name}", plan.streams[name], total))
        yield total, claims
    yield plan.samples, top


def _steps(plan: Plan, top: Sequence[_Claim]) -> tuple[int | None, str]:
    """Whole global batches of the budget, or without one of what the amounts come to; and why."""
    length, batch = plan.sequence_length, plan.global_batch_size
    budget = _amount(plan.budget)
    if budget is not None:
        kind, number = budget
        steps = int(number if kind == "steps" else number / (batch * length))
        return steps, f"the budget ({plan.budget}) gives {steps}"
    fixed, left = Fraction(), Fraction(1)
    for claim in top:
        if claim.amount is None:
            return None, f"but {claim.name} fills the rest of no budget"
        if claim.amount[0] == "share":
            left -= claim.amount[1]
        else:
            fixed += claim.exact(0, length)
    if left <= 0:
        return None, "but shares leave nothing that fixes the length"
    steps = int(fixed / left / batch)
    return steps, f"the amounts come to {steps}"


def _due(claims: Sequence[_Claim], total: int, length: int) -> dict[str, int]:
    """Windows of each claim, of `total`."""
    named = [claim for claim in claims if claim.amount is not None]
    exact = {claim.name: claim.exact(total, length) for claim in named}
    due = {name: int(amount) for name, amount in exact.items()}
    left = total - sum(due.values())
    fillers = [claim for claim in claims if claim.amount is None]
    if fillers:
        return due | _filled(fillers, left)
    if left > 0:
        for claim in sorted(named, key=lambda c: (_is_full(c, due), _claim_to_one(c, exact)))[
            :left
        ]:
            due[claim.name] += 1
    for claim in sorted(named, key=lambda c: _gives_way(c, due)):
        given = max(0, min(-left, due[claim.name]))
        due[claim.name] -= given
        left += given
    return due


def _filled(fillers: Sequence[_Claim], total: int) -> dict[str, int]:
    """Equal epochs; who would pass its cap gets the cap, and the others divide what is left."""
    due: dict[str, int] = {}
    while free := [claim for claim in fillers if claim.name not in due]:
        left, size = total - sum(due.values()), sum(claim.whole for claim in free)
        exact = {c.name: Fraction(left * c.whole, size) if size else Fraction() for c in free}
        parts = {name: int(amount) for name, amount in exact.items()}
        more = left - sum(parts.values())
        for claim in sorted(free, key=lambda c: _claim_to_one(c, exact))[: max(0, more)]:
            parts[claim.name] += 1
        capped = {c.name: c.room for c in free if c.room is not None and parts[c.name] > c.room}
        if not capped:
            return due | parts
        due |= capped
    return due


def _is_full(claim: _Claim, due: Mapping[str, int]) -> bool:
    return claim.room is not None and due[claim.name] >= claim.room


def _claim_to_one(claim: _Claim, exact: Mapping[str, Fraction]) -> tuple[Fraction, int]:
    """Sorts by the largest remainder; of equal ones as the plan has it."""
    part = int(exact[claim.name])
    return part - exact[claim.name], part - claim.windows


def _gives_way(claim: _Claim, due: Mapping[str, int]) -> tuple[int, int, int]:
    """Sorts by who loses windows first, where the amounts come to more than whole batches."""
    assert claim.amount is not None
    return _RELUCTANCE.index(claim.amount[0]), -due[claim.name], claim.windows


def _amount(words: str) -> tuple[str, Fraction] | None:
    """`share 0.5` to its kind and number."""
    found = re.fullmatch(r"(tokens|share|epochs|steps) ([\d.,e+-]+)", words)
    return None if found is None else (found[1], Fraction(found[2].replace(",", "")))
