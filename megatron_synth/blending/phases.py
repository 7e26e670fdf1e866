"""A declared change of plan: every corpus goes on where it stood."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from megatron_synth.blending.config import CorpusConfig
from megatron_synth.blending.plan import Plan, PlannedCorpus
from megatron_synth.blending.schedule import schedule_of
from megatron_synth.blending.sizes import CorpusSize
from megatron_synth.config import ConfigError


@dataclass(frozen=True)
class Continuation:
    """Where each corpus stands when a phase begins.

    Attributes:
        corpora: Corpora of all earlier phases, `start` moved to where they stand, `windows` 0.
        first_step: Steps of all earlier phases.
        previous: Hash of the plan before; None for a first phase.
    """

    corpora: Mapping[str, PlannedCorpus] = field(default_factory=dict)
    first_step: int = 0
    previous: str | None = None

    def start(self, name: str, size: CorpusSize, *, reshuffle: bool) -> int:
        """Windows of corpus `name` that were served before; 0 for a new corpus.

        Raises:
            ConfigError: The corpus has changed since, or is to be shuffled another way: what was
                seen of it could then not be told apart from what was not.
        """
        known = self.corpora.get(name)
        if known is None or known.start == 0:
            return 0
        was = (known.tokens, known.documents, known.content_hash)
        if was != (size.tokens, size.documents, size.content_hash):
            raise ConfigError(
                f"changed since the phase before: {known.tokens:,} tokens in "
                f"{known.documents:,} documents (content {_short(known.content_hash)}) then, "
                f"{size.tokens:,} in {size.documents:,} ({_short(size.content_hash)}) now",
                where=name,
                fix="Give changed data a new name: it is then a new corpus, begun at its start.",
            )
        if known.reshuffle != reshuffle:
            raise ConfigError(
                f"reshuffle was {known.reshuffle} in the phase before, is {reshuffle} now",
                where=name,
                fix="Keep it: it decides which windows are still unseen.",
            )
        return known.start

    def capped(self, name: str, amount: CorpusConfig) -> CorpusConfig:
        """The amount with the cap of the phases before, where it names none: caps are for all."""
        known = self.corpora.get(name)
        if known is None or known.max_epochs is None or amount.max_epochs is not None:
            return amount
        return amount.model_copy(update={"max_epochs": known.max_epochs})

    def with_earlier(self, planned: Sequence[PlannedCorpus]) -> tuple[PlannedCorpus, ...]:
        """The phase's corpora; earlier ones first, in their order, so that ids never change.

        A corpus that the phase does not use stays, with 0 windows, for the phases after it.
        """
        now = {corpus.name: corpus for corpus in planned}
        earlier = [now.pop(name, corpus) for name, corpus in self.corpora.items()]
        return (*earlier, *now.values())


def continue_after(
    plan: Plan | None, step: int | None, sequence_length: int, seed: int
) -> Continuation:
    """Where the corpora of `plan` stand after `step` of its steps (all if None).

    Raises:
        ConfigError: The step is not one of the plan; the plan has stock order; or sequence length
            or seed change: windows of another length or order cannot be told from those seen.
    """
    if plan is None:
        if step is not None:
            raise ConfigError("after_step is set, but not the plan that it is a step of")
        return Continuation()
    if plan.order != "strict":
        raise ConfigError(
            f"the phase before has order: {plan.order}, which keeps no account of what was seen",
            where="blend.order",
            fix="Only phases in strict order can be followed by others.",
        )
    done = plan.steps if step is None else step
    if not 0 <= done <= plan.steps:
        raise ConfigError(f"the phase before has steps 0 to {plan.steps:,}, not {done:,}")
    for what, before, now in (
        ("sequence_length", plan.sequence_length, sequence_length),
        ("seed", plan.seed, seed),
    ):
        if before != now:
            raise ConfigError(
                f"{what} was {before} in the phase before, is {now} now",
                where=f"blend.{what}",
                fix="Keep it within a run: it decides which windows are still unseen.",
            )
    served = schedule_of(plan).before(done)
    corpora = {
        corpus.name: corpus.model_copy(
            update={
                "start": corpus.start + count,
                "windows": 0,
                "asked": "not in this phase",
            }
        )
        for corpus, count in zip(plan.corpora, served, strict=True)
    }
    return Continuation(corpora, plan.first_step + done, plan.hash)


def _short(content_hash: str | None) -> str:
    return "not made yet" if content_hash is None else content_hash[:12]
