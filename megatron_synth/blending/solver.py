"""From what the user asked for to exact numbers of windows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from megatron_synth.blending.config import BlendConfig, CorpusConfig, StreamConfig
from megatron_synth.blending.divide import Demand, divide, exactly, natural_total
from megatron_synth.blending.phases import continue_after
from megatron_synth.blending.plan import Plan, PlannedCorpus
from megatron_synth.blending.sizes import CorpusSize, require_names
from megatron_synth.blending.stock.plan import require_stock_order_can
from megatron_synth.config import ConfigError


def solve(
    config: BlendConfig,
    corpora: Mapping[str, CorpusSize],
    *,
    after: Plan | None = None,
    after_step: int | None = None,
) -> Plan:
    """Solve `config` for corpora of these sizes; no data is read.

    Rounding, all in exact integers (S = sequence_length, G = global_batch_size):

    - an epoch of a corpus of N tokens is (N - 1) // S windows (windows overlap by the one token
      that only the earlier one predicts); the (N - 1) % S tokens after them are dropped;
    - the budget is rounded down to whole global batches; without one it is what the amounts come
      to (fixed / (1 - shares)), rounded down to whole global batches;
    - a whole number of epochs is met exactly, a fractional one rounded down to windows;
    - tokens and shares are rounded down to windows, the filling corpus gets all the rest; without
      a filling corpus see `divide`. The total is exact in every case.

    Args:
        config: What is asked for.
        corpora: Size of every corpus that the config names; others may be there. A corpus that is
            not made yet has declared counts and `content_hash=None`.
        after: The plan of the phase before: every corpus goes on where it stood.
        after_step: Steps of `after` that were trained; all of them if None.

    Raises:
        ConfigError: An unknown corpus, corpora of different tokenizers, a corpus smaller than one
            window, a budget under one global batch, amounts that conflict, a cap that is passed,
            a phase that cannot follow `after`, or what `order: megatron` cannot do. The message
            gives the numbers.
    """
    wanted = _flatten(config)
    require_names(wanted, corpora, where="blend")
    past = continue_after(after, after_step, config.sequence_length, config.seed)
    tokenizers = {name: corpus.tokenizer for name, corpus in past.corpora.items()}
    _refuse_mixed_tokenizers(tokenizers | {name: corpora[name].tokenizer for name in wanted})
    sources = {
        name: _Source(
            name=name,
            stream=stream,
            config=past.capped(name, amount),
            size=corpora[name],
            start=past.start(name, corpora[name], reshuffle=bool(amount.reshuffle)),
            per_epoch=max(0, corpora[name].tokens - 1) // config.sequence_length,
        )
        for name, (stream, amount) in wanted.items()
    }
    windows = _solve_windows(config, sources)
    for source in sources.values():
        _check(source, windows[source.name], config.sequence_length)
    plan = Plan(
        sequence_length=config.sequence_length,
        global_batch_size=config.global_batch_size,
        seed=config.seed,
        attention=config.attention,
        order=config.order,
        steps=sum(windows.values()) // config.global_batch_size,
        budget="" if config.budget is None else config.budget.asked,
        streams={name: s.asked for name, s in config.streams.items() if s.divides},
        corpora=past.with_earlier(
            [s.planned(windows[s.name], config.sequence_length) for s in sources.values()]
        ),
        first_step=past.first_step,
        previous=past.previous,
    )
    if plan.order == "megatron":
        require_stock_order_can(plan)
    return plan


@dataclass(frozen=True)
class _Source:
    """A corpus, its settled config, and where it stands."""

    name: str
    stream: str
    config: CorpusConfig
    size: CorpusSize
    start: int
    per_epoch: int

    def demand(self, sequence_length: int) -> Demand:
        """What it asks for, for `divide`.

        Raises:
            ConfigError: It is smaller than one window, and more than nothing is asked of it.
        """
        amounts = (self.config.tokens, self.config.share, self.config.epochs)
        if self.per_epoch == 0 and not any(a == 0 for a in amounts):
            raise ConfigError(
                f"{self.size.tokens:,} tokens are less than one window, which takes "
                f"{sequence_length + 1:,} (sequence_length + 1)",
                where=self.name,
                fix="Use a shorter sequence_length or more data; or leave the corpus out.",
            )
        tokens, share, epochs = amounts
        fixed = None
        if tokens is not None:
            fixed = Fraction(tokens, sequence_length)
        elif epochs is not None:
            fixed = exactly(epochs) * self.per_epoch
        return Demand(
            name=self.name,
            per_epoch=self.per_epoch,
            fixed=fixed,
            share=None if share is None else exactly(share),
            whole_epochs=epochs is not None,
            room=None if self.cap is None else max(0, self.cap - self.start),
        )

    @property
    def cap(self) -> int | None:
        """Windows that max_epochs allows, over all phases."""
        cap = self.config.max_epochs
        return None if cap is None else int(exactly(cap) * self.per_epoch)

    def planned(self, windows: int, sequence_length: int) -> PlannedCorpus:
        """Its line of the plan."""
        return PlannedCorpus(
            name=self.name,
            stream=self.stream,
            asked=self.config.asked,
            tokens=self.size.tokens,
            documents=self.size.documents,
            content_hash=self.size.content_hash,
            tokenizer=self.size.tokenizer,
            windows_per_epoch=self.per_epoch,
            dropped_per_epoch=max(0, self.size.tokens - 1) % sequence_length,
            start=self.start,
            windows=windows,
            max_epochs=self.config.max_epochs,
            reshuffle=bool(self.config.reshuffle),
            source=self.size.source,
        )


def _flatten(config: BlendConfig) -> dict[str, tuple[str, CorpusConfig]]:
    """Each corpus with its stream's name and its settings, the stream's where it has none."""
    flat = {
        name: (name, corpus.model_copy(update={"reshuffle": corpus.reshuffle is not False}))
        for name, corpus in config.corpora.items()
    }
    for stream_name, stream in config.streams.items():
        for name, corpus in stream.corpora.items():
            inherited = {
                "epochs": stream.epochs if corpus.fills else corpus.epochs,
                "max_epochs": corpus.max_epochs or stream.max_epochs,
                "reshuffle": stream.reshuffle if corpus.reshuffle is None else corpus.reshuffle,
            }
            flat[name] = (stream_name, corpus.model_copy(update=inherited))
    return flat


def _solve_windows(config: BlendConfig, sources: Mapping[str, _Source]) -> dict[str, int]:
    """Windows of each corpus; whole global batches in all."""
    length, batch = config.sequence_length, config.global_batch_size
    grouped = {
        label: stream
        for name, stream in config.streams.items()
        if stream.divides
        for label in [f"stream {name!r}"]
    }
    inside = {name for stream in grouped.values() for name in stream.corpora}
    top = [s.demand(length) for name, s in sources.items() if name not in inside]
    top += [_stream_demand(label, stream, sources, length) for label, stream in grouped.items()]
    total = _total(config, top)
    windows = divide(total, top, slack=batch, what="the budget")
    for label, stream in grouped.items():
        inner = [sources[name].demand(length) for name in stream.corpora]
        total_here = windows.pop(label)
        windows |= divide(total_here, inner, slack=batch, what=label, rounded_up=True)
    return windows


def _stream_demand(
    label: str, stream: StreamConfig, sources: Mapping[str, _Source], length: int
) -> Demand:
    return Demand(
        name=label,
        per_epoch=sum(sources[name].per_epoch for name in stream.corpora),
        fixed=None if stream.tokens is None else Fraction(stream.tokens, length),
        share=None if stream.share is None else exactly(stream.share),
    )


def _total(config: BlendConfig, demands: Sequence[Demand]) -> int:
    """Windows in all: the budget, rounded down to whole global batches."""
    length, batch = config.sequence_length, config.global_batch_size
    budget = config.budget
    if budget is None:
        wanted, source = natural_total(demands), "what the corpora ask for"
    elif budget.steps is not None:
        wanted, source = Fraction(budget.steps * batch), "the budget"
    else:
        assert budget.tokens is not None
        wanted, source = Fraction(budget.tokens, length), "the budget"
    total = int(wanted / batch) * batch
    if total == 0:
        raise ConfigError(
            f"{source} is {int(wanted * length):,} tokens, but one global batch takes "
            f"{batch * length:,} ({batch:,} windows of {length:,})",
            where="blend.budget",
            fix="Raise the budget, or lower global_batch_size or sequence_length.",
        )
    return total


def _check(source: _Source, windows: int, length: int) -> None:
    """Refuse a passed cap, and an amount that rounds down to nothing."""
    cap, amount = source.cap, source.config
    if cap is not None and source.start + windows > cap:
        before = f" after {source.start:,} in earlier phases" if source.start else ""
        raise ConfigError(
            f"the plan takes {windows:,} windows{before}, "
            f"{(source.start + windows) / source.per_epoch:.4g} epochs, but max_epochs "
            f"{amount.max_epochs:g} allows {cap:,}",
            where=source.name,
            fix=f"Raise max_epochs, take {(source.start + windows - cap) * length:,} tokens less, "
            "or add data.",
        )
    asked = amount.tokens or amount.share or amount.epochs
    if asked and windows == 0:
        raise ConfigError(
            f"{amount.asked} comes to less than one window of {length:,} tokens",
            where=source.name,
            fix="Ask for more, or for 0.",
        )


def _refuse_mixed_tokenizers(tokenizers: Mapping[str, str | None]) -> None:
    """Refuse fingerprints that differ, over all phases; unknown ones (None) are let pass."""
    by_tokenizer: dict[str, list[str]] = {}
    for name, tokenizer in tokenizers.items():
        if tokenizer is not None:
            by_tokenizer.setdefault(tokenizer, []).append(name)
    if len(by_tokenizer) > 1:
        groups = "; ".join(f"{t[:12]}: {', '.join(names)}" for t, names in by_tokenizer.items())
        raise ConfigError(
            f"the corpora were packed with different tokenizers ({groups})",
            fix="Pack all of them with one tokenizer.",
        )
