"""The blend as a user writes it: budget, streams, corpora, and how much of each."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from megatron_synth.config import Config, Count


class Amount(Config):
    """How much of a corpus (or a stream) is trained on: at most one of tokens, share, epochs.

    With none of them the corpus fills what the others leave; several such corpora divide the rest
    in proportion to their size, that is, at equal epochs.
    """

    tokens: Count | None = None
    """Tokens to train on; rounded down to whole windows."""
    share: float | None = Field(default=None, ge=0, le=1)
    """Share of the plan's windows, 0 to 1; inside a stream that has `tokens` or `share` of its
    own, the share of that stream's windows. Rounded down to whole windows where a corpus fills
    the rest, by largest remainder where none does."""
    epochs: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Passes over the corpus; a whole number is met exactly, window for window, where another
    corpus fills the rest. Where none does, whole global batches may cost the end of an epoch."""
    max_epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """A hard cap, counted over all phases: a plan that needs more is refused."""

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        given = [k for k in ("tokens", "share", "epochs") if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both set; set one of them")
        epochs, cap = self.epochs, self.max_epochs
        if epochs is not None and cap is not None and epochs > cap:
            raise ValueError(f"epochs {epochs:g} is over max_epochs {cap:g}")
        return self

    @property
    def fills(self) -> bool:
        """Whether it has no amount of its own and takes what the others leave."""
        return self.tokens is None and self.share is None and self.epochs is None

    @property
    def asked(self) -> str:
        """The amount in words, for the plan's table."""
        if self.tokens is not None:
            return f"tokens {self.tokens:,}"
        if self.share is not None:
            return f"share {_written(self.share)}"
        if self.epochs is not None:
            return f"epochs {_written(self.epochs)}"
        return "fills the rest"


def _written(number: float) -> str:
    """The number as a person writes it, and not rounded: 0.1, 1, 0.29999999999999993."""
    return repr(number).removesuffix(".0")


class CorpusConfig(Amount):
    """One corpus of a blend."""

    reshuffle: bool | None = None
    """Draw a new permutation every epoch; unset: as the stream says (true without a stream)."""


def _empty_for_none(value: Any) -> Any:
    """Let `organic:` (nothing after the colon) stand for `organic: {}`."""
    if isinstance(value, dict):
        return {name: {} if content is None else content for name, content in value.items()}
    return value


Corpora = Annotated[dict[str, CorpusConfig], BeforeValidator(_empty_for_none)]


class StreamConfig(Amount):
    """A named group of corpora: `tokens` or `share` of it is divided among its corpora.

    `epochs`, `max_epochs` and `reshuffle` of a stream are what each of its corpora has where it
    says nothing itself.
    """

    corpora: Corpora = Field(min_length=1)
    reshuffle: bool = True
    """False: the same permutation of documents and windows every epoch."""

    @property
    def divides(self) -> bool:
        """Whether it has an amount of its own, which is divided among its corpora."""
        return self.tokens is not None or self.share is not None


class Budget(Config):
    """The length of training: tokens or steps."""

    tokens: Count | None = None
    """Tokens to train on; rounded down to whole global batches."""
    steps: Count | None = None
    """Optimizer steps, each of one global batch."""

    @property
    def asked(self) -> str:
        """The budget in words, for the plan."""
        return f"steps {self.steps:,}" if self.tokens is None else f"tokens {self.tokens:,}"

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        if (self.tokens is None) == (self.steps is None):
            raise ValueError("set tokens or steps, one of them")
        return self


def tokens_for_count(value: Any) -> Any:
    """Let `budget: 1M` stand for `budget: {tokens: 1M}`."""
    return {"tokens": value} if isinstance(value, str | int | float) else value


class BlendConfig(Config):
    """What to train on, in which shares.

    The common form names corpora only; each is then a stream of its own:

        budget: 1M
        sequence_length: 512
        global_batch_size: 16
        corpora: {synthetic: {epochs: 1}, organic: {}}
    """

    budget: Annotated[Budget, BeforeValidator(tokens_for_count)] | None = None
    """`1M` (tokens) or `{steps: 100}`; unset: what the corpora's own amounts come to."""
    sequence_length: int = Field(ge=1)
    """Tokens a window trains on."""
    global_batch_size: int = Field(ge=1)
    """Windows an optimizer step, over all ranks."""
    seed: int = Field(default=0, ge=0)
    """The order of documents and windows; nothing else depends on it."""
    attention: Literal["cross", "document"] = "cross"
    """`cross`: tokens attend over document borders inside a window. `document`: they do not;
    samples then carry `cu_seqlens` and positions start anew with each document."""
    order: Literal["strict", "megatron"] = "strict"
    """`strict`: epoch by epoch, as docs/blending.md says. `megatron`: the stock datasets of
    Megatron-Core, in their own order, for runs that must match an old one; weights are then the
    windows that were planned, and there are no caps, phases and selections."""
    corpora: Corpora = Field(default_factory=dict)
    """Corpora that are a stream each, by name."""
    streams: dict[str, StreamConfig] = Field(default_factory=dict)
    """Streams of several corpora, by name."""

    @property
    def names(self) -> list[str]:
        """Every corpus, in the order of the file."""
        return [*self.corpora, *(c for s in self.streams.values() for c in s.corpora)]

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = self.names
        if not names:
            raise ValueError("a blend needs at least one corpus, under corpora or streams")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"corpora stand in two places: {', '.join(twice)}")
        both = sorted(set(names) & set(self.streams))
        if both:
            raise ValueError(f"named as corpus and as stream: {', '.join(both)}")
        return self
