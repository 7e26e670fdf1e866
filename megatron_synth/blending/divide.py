"""Divide a number of windows among corpora, in exact integers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from megatron_synth.config import ConfigError


def exactly(number: float) -> Fraction:
    """The number as it was written: 0.1 is one tenth."""
    return Fraction(repr(number))


@dataclass(frozen=True)
class Demand:
    """What one corpus (or one stream with an amount of its own) asks for.

    Attributes:
        name: As the user wrote it, with "stream" before it for a stream.
        per_epoch: Windows in one epoch of it.
        fixed: Windows asked for in tokens or epochs, before rounding; None if not so.
        share: Share of the windows to divide; None if not so. A demand with neither fills.
        whole_epochs: `fixed` comes from epochs and must not be changed by rounding.
        room: Windows left under its cap; None without a cap.
    """

    name: str
    per_epoch: int
    fixed: Fraction | None = None
    share: Fraction | None = None
    whole_epochs: bool = False
    room: int | None = None

    @property
    def fills(self) -> bool:
        """Whether it takes what the others leave."""
        return self.fixed is None and self.share is None


def natural_total(demands: Sequence[Demand]) -> Fraction:
    """The windows that amounts come to without a budget: fixed / (1 - shares).

    Raises:
        ConfigError: Something fills the rest of nothing, or there are only shares.
    """
    fillers = [d.name for d in demands if d.fills]
    if fillers:
        raise ConfigError(
            f"without a budget nothing says how much {_listed(fillers)} should get",
            fix="Set budget, or tokens, share or epochs there.",
        )
    fixed = sum((d.fixed for d in demands if d.fixed is not None), Fraction())
    shares = sum((d.share for d in demands if d.share is not None), Fraction())
    if shares >= 1 or not fixed:
        raise ConfigError(
            f"without a budget nothing fixes the length: shares come to {float(shares):g}, and "
            f"fixed amounts to {float(fixed):g} windows",
            fix="Set budget, or give some corpus tokens or epochs and let shares stay under 1.",
        )
    return fixed / (1 - shares)


def divide(
    total: int, demands: Sequence[Demand], *, slack: int, what: str, rounded_up: bool = False
) -> dict[str, int]:
    """Windows of each demand, summing to `total` exactly.

    With a filler: amounts are rounded down, fillers divide the rest in proportion to their size
    (equal epochs; those that reach their cap get the cap, the others more). Without one: the
    exact amounts must come to at least `total` and less than `total + slack`; they are rounded by
    largest remainder, and a surplus is taken off shares first, then tokens, then epochs, the
    largest first.

    Args:
        total: Windows to divide.
        demands: Who asks; names are unique.
        slack: Windows of one global batch: a surplus under it is rounding, not a conflict.
        what: What `total` is, for messages: "the budget".
        rounded_up: `total` is itself an amount that rounding may have raised by less than a window.

    Raises:
        ConfigError: The amounts cannot come to `total`; gives the numbers.
    """
    exact = {d.name: _exact(d, total) for d in demands if not d.fills}
    taken = {name: int(amount) for name, amount in exact.items()}
    fillers = [d for d in demands if d.fills]
    listing = ", ".join(f"{name} {float(amount):,.10g}" for name, amount in exact.items())
    if fillers:
        rest = total - sum(taken.values())
        if rest < 0:
            raise ConfigError(
                f"{what} is {total:,} windows, but the amounts asked for come to "
                f"{sum(taken.values()):,} ({listing}), {-rest:,} too many",
                fix=f"Lower them; nothing is left for {_listed(d.name for d in fillers)}.",
            )
        return taken | _fill(rest, fillers, what)
    asked = sum(exact.values(), Fraction())
    enough = asked > total - 1 if rounded_up else asked >= total
    if not (enough and asked < total + slack):
        excess = float(asked - total)
        raise ConfigError(
            f"{what} is {total:,} windows, but the amounts asked for come to {float(asked):,.10g} "
            f"({listing}): {abs(excess):,.10g} too {'many' if excess > 0 else 'few'}",
            fix="Leave one corpus without an amount to fill the rest, or leave budget out.",
        )
    return _round(total, exact, {d.name: d for d in demands})


def by_largest_remainder(total: int, weights: Mapping[str, int]) -> dict[str, int]:
    """`total` in proportion to `weights`; what rounding down leaves goes to largest remainders.

    Ties go to the one named first. Integers only, exact.
    """
    whole = sum(weights.values())
    parts = {name: divmod(total * weight, whole) for name, weight in weights.items()}
    order = sorted(parts, key=lambda name: -parts[name][1])
    left = total - sum(quotient for quotient, _ in parts.values())
    raised = set(order[:left])
    return {name: quotient + (name in raised) for name, (quotient, _) in parts.items()}


def _exact(demand: Demand, total: int) -> Fraction:
    if demand.fixed is not None:
        return demand.fixed
    assert demand.share is not None
    return demand.share * total


def _fill(rest: int, fillers: Sequence[Demand], what: str) -> dict[str, int]:
    """Equal epochs; whoever would pass its cap is set to it, and the others divide again."""
    result: dict[str, int] = {}
    open_ones = list(fillers)
    while open_ones:
        left = rest - sum(result.values())
        parts = by_largest_remainder(left, {d.name: d.per_epoch for d in open_ones})
        over = [d for d in open_ones if d.room is not None and parts[d.name] > d.room]
        if not over:
            return result | parts
        result |= {d.name: d.room for d in over if d.room is not None}
        open_ones = [d for d in open_ones if d.name not in result]
    missing = rest - sum(result.values())
    caps = ", ".join(f"{d.name} {d.room:,}" for d in fillers)
    raise ConfigError(
        f"{what} leaves {rest:,} windows for {_listed(result)}, but max_epochs allows "
        f"{sum(result.values()):,} ({caps}): {missing:,} cannot be filled",
        fix="Raise max_epochs, lower the budget, or add data.",
    )


def _round(
    total: int, exact: Mapping[str, Fraction], demands: Mapping[str, Demand]
) -> dict[str, int]:
    """Exact amounts to integers that sum to `total`; see `divide`."""
    parts = {name: int(amount) for name, amount in exact.items()}
    missing = total - sum(parts.values())

    def remainder(name: str) -> tuple[bool, Fraction]:
        room = demands[name].room
        return (room is not None and parts[name] >= room, parts[name] - exact[name])

    for name in sorted(parts, key=remainder)[: max(0, missing)]:
        parts[name] += 1
    surplus = max(0, -missing)

    def reluctance(name: str) -> tuple[int, int]:
        demand = demands[name]
        return (0 if demand.share is not None else 1 + demand.whole_epochs, -parts[name])

    for name in sorted(parts, key=reluctance):
        given_up = min(surplus, parts[name])
        parts[name] -= given_up
        surplus -= given_up
    return parts


def _listed(names: Iterable[str]) -> str:
    return " and ".join(names)
