"""What a report is made of: plain numbers, strings and lists, filled from manifests and logs.

Everything has a default that means "not there yet", so a run in any state has a report.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

Role = Literal["baseline", "method", "oracle", "other"]
State = Literal["done", "running", "waiting", "failed"]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0)]


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Range(_Plain):
    """An estimate with its interval, such as `evaluation.Interval`."""

    estimate: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    confidence: float = Field(default=0.95, gt=0, lt=1)

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign is settled."""
        return self.low > 0 or self.high < 0


class Arm(_Plain):
    """One arm of the comparison."""

    name: str
    """Its key in the experiment, for example `sbp`; curves and ledger rows refer to it."""
    label: str = ""
    """How people call it, for example `SBP`; by default the name."""
    role: Role = "other"
    """`baseline`: what others are compared with (one arm); `oracle`: the one with fresh data."""
    method: str = ""
    """Name of the method as in METHODS, for example `sbp`."""
    state: State = "done"
    loss: NonNegative | None = None
    """Mean held-out loss, nats per token."""
    loss_error: NonNegative | None = None
    """Standard error of `loss` over documents."""
    difference: Range | None = None
    """Loss minus the baseline's (negative = better), paired over documents."""
    recovery: Range | None = None
    """Recovery ratio as a fraction; None where it is not identified or does not apply."""
    recovery_note: str = ""
    """Why there is no recovery ratio."""
    tokens: Whole | None = None
    """Tokens trained on."""
    synthetic_share: float | None = Field(default=None, ge=0, le=1)
    """Share of `tokens` that is synthetic."""
    epochs: NonNegative | None = None
    """Epochs of the organic corpus D."""
    unique_tokens: Whole | None = None
    """Distinct organic tokens that the arm could see."""

    @property
    def title(self) -> str:
        """What to print."""
        return self.label or self.name


class Curve(_Plain):
    """A loss over training."""

    arm: str
    """Name of the arm, or of the tuning run."""
    kind: Literal["train", "validation"] = "train"
    stream: str = ""
    """The corpus whose windows are meant; empty: all of them together."""
    tokens: Sequence[NonNegative]
    """Tokens trained so far, rising."""
    loss: Sequence[FiniteFloat]
    """Mean loss, nats per token."""

    @model_validator(mode="after")
    def _equal_length(self) -> Self:
        if len(self.tokens) != len(self.loss):
            raise ValueError(f"{len(self.tokens)} token counts for {len(self.loss)} losses")
        return self


class LedgerRow(_Plain):
    """What one arm took from one corpus, against its plan."""

    arm: str
    corpus: str
    synthetic: bool = False
    corpus_tokens: Whole | None = None
    planned_tokens: Whole
    used_tokens: Whole
    planned_epochs: NonNegative
    used_epochs: NonNegative
    cap_epochs: NonNegative | None = None
    """Epochs that the plan allowed at most."""
    dropped_tokens: Whole | None = None
    """Tokens at the ends of epochs that filled no window."""


class TextPair(_Plain):
    """Two texts to read side by side. Both are hostile input and shown as text."""

    left_title: str
    left: str
    right_title: str
    right: str
    note: str = ""
    """For example `similarity 0.83`."""


class Drop(_Plain):
    """Something that was left out, and why."""

    reason: str
    count: Whole


class Corpus(_Plain):
    """The organic text: what was read, and what became of it."""

    rows: Whole
    """Rows that were read."""
    documents: Whole
    """Documents that the import kept."""
    validation: Whole | None = None
    """Held-out documents that arms are compared on."""
    validation_asked: Whole | None = None
    organic: Whole | None = None
    """Documents in D."""
    pool: Whole | None = None
    """Documents in the oracle's pool, those of D among them."""
    drops: Sequence[Drop] = ()


class Histogram(_Plain):
    """Similarities of pairs: `pairing`'s `report.json` has this form."""

    edges: Sequence[FiniteFloat]
    """b + 1 bin edges, rising."""
    neighbours: Sequence[Whole]
    """b counts: all neighbour relations."""
    pairs: Sequence[Whole]
    """b counts: those that became pairs."""

    @model_validator(mode="after")
    def _bins(self) -> Self:
        bins = len(self.edges) - 1
        if bins < 1 or len(self.neighbours) != bins or len(self.pairs) != bins:
            raise ValueError(
                f"{len(self.edges)} edges need {bins} counts, not {len(self.neighbours)} and "
                f"{len(self.pairs)}"
            )
        return self


class Pairs(_Plain):
    """The pairing step."""

    pairs: Whole
    threshold: FiniteFloat
    documents: Whole
    """Documents in D."""
    documents_as_d1: Whole
    """Documents that are the first of some pair."""
    histogram: Histogram | None = None
    drops: Sequence[Drop] = ()
    samples: Sequence[TextPair] = ()
    near_duplicates: Sequence[TextPair] = ()
    """Pairs that were dropped for a shared passage."""


class Tuning(_Plain):
    """Synthesizer tuning."""

    pairs: Whole | None = None
    tokens: Whole | None = None
    """Tokens of d2 that had a loss."""
    curves: Sequence[Curve] = ()
    """`arm` is any name; tokens as in pretraining."""


class Synthesis(_Plain):
    """The generation step."""

    generator: str = ""
    """Model and engine."""
    sampling: str = ""
    """For example `temperature 1.0, top-p 0.9`."""
    requested: Whole | None = None
    """Completions asked for."""
    kept: Whole | None = None
    tokens: Whole | None = None
    """Tokens of the kept documents."""
    drops: Sequence[Drop] = ()
    samples: Sequence[TextPair] = ()
    """Seed document on the left, synthetic one on the right."""


class Cost(_Plain):
    """What a step took."""

    step: str
    seconds: NonNegative
    tokens: Whole | None = None
    """Tokens trained, generated or embedded."""
    flops: NonNegative | None = None


class StepRow(_Plain):
    """A step of the run."""

    name: str
    state: State = "done"
    folder: str = ""
    """Relative to the run folder."""
    content_hash: str = ""
    seconds: NonNegative | None = None


class HeldOut(_Plain):
    """What the arms were evaluated on."""

    documents: Whole
    tokens: Whole
    description: str = ""
    """For example `documents of packages that no arm was trained on`."""
    clusters: Whole | None = None
    """Groups that intervals resample, where documents of a group are not independent."""
    cluster: str = ""
    """What such a group is: `package`."""


class ReportData(_Plain):
    """A run, as its report shows it.

    Only `question` must be set. Sections without data say that they are missing.
    """

    question: str
    """What the run asks, one sentence with a question mark."""
    title: str = ""
    """Name of the experiment."""
    run_folder: str = ""
    created: str = ""
    """When the report was written, ISO 8601."""
    finished: bool = True
    parameters: Whole | None = None
    """Parameters of the model that the arms train."""
    seeds: int = Field(default=1, ge=1)
    """Training runs of each arm."""
    notes: Sequence[str] = ()
    """Sentences that belong under the answer: limits of what was measured."""
    held_out: HeldOut | None = None
    arms: Sequence[Arm] = ()
    """In the order to show them."""
    curves: Sequence[Curve] = ()
    ledger: Sequence[LedgerRow] = ()
    corpus: Corpus | None = None
    pairs: Pairs | None = None
    tuning: Tuning | None = None
    synthesis: Synthesis | None = None
    costs: Sequence[Cost] = ()
    steps: Sequence[StepRow] = ()
    environment: dict[str, str] = Field(default_factory=dict)
    config_yaml: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            raise ValueError("two arms have the same name")
        if sum(arm.role == "baseline" for arm in self.arms) > 1:
            raise ValueError("more than one arm is the baseline")
        return self
