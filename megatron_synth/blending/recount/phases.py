"""Which plans the audit takes, and how far each phase of a chain went."""

from collections.abc import Sequence
from itertools import pairwise

from megatron_synth.blending.plan import Plan
from megatron_synth.config import ConfigError


def want_strict(plan: Plan) -> None:
    """Refuse the stock order.

    Raises:
        ConfigError: The plan has it.
    """
    if plan.order != "strict":
        raise ConfigError(
            f"the plan has order: {plan.order}, which keeps no strict epochs: there is no account "
            "to recount",
            where="blend.order",
            fix="Audit plans of order: strict only.",
        )


def want_chain(plans: Sequence[Plan]) -> None:
    """Refuse plans that are not phases of one run, each going on from the one before.

    Raises:
        ConfigError: Names the first that is not.
    """
    for earlier, later in pairwise(plans):
        want_strict(earlier)
        if later.previous != earlier.hash:
            said = "no other" if later.previous is None else f"plan {later.previous[:12]}"
            raise ConfigError(
                f"plan {later.hash[:12]} goes on from {said}, not from plan {earlier.hash[:12]}",
                where="before",
                fix="Give the plans of all earlier phases in their order.",
            )


def steps_of(plan: Plan, following: Plan) -> int:
    """Steps of `plan` after which `following` goes on, if it has so many."""
    return max(0, min(plan.steps, following.first_step - plan.first_step))
