"""What Megatron-Core's stock datasets make of a plan: arithmetic and refusals, without torch."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_synth.blending.plan import Plan, PlannedCorpus
from megatron_synth.blending.sizes import nearest_name, path_prefix
from megatron_synth.config import ConfigError

SURPLUS = 0.005
"""Megatron's `--mid-level-dataset-surplus`: what stock builds of each corpus beyond its share."""
_LAST_EPOCH_APART = 0.80  # GPTDataset: below this share of an epoch the last one is shuffled apart


@dataclass(frozen=True)
class StockCorpus:
    """What stock builds of one corpus for a plan.

    Attributes:
        name: Its name in the plan.
        dataset_id: Its index in `plan.corpora`.
        weight: Its weight: the planned windows. Stock divides weights by their sum.
        built: Windows that stock is asked to build: planned ones, and the surplus.
        epochs: Whole epochs that it makes these from.
        last_apart: Whether the last epoch is shuffled apart, after all others; else all epochs
            are shuffled together.
    """

    name: str
    dataset_id: int
    weight: int
    built: int
    epochs: int
    last_apart: bool

    @property
    def mixed_epochs(self) -> int:
        """How many epochs are shuffled together, documents and windows, at the start."""
        return self.epochs - self.last_apart


def stock_corpora(plan: Plan, surplus: float = SURPLUS) -> tuple[StockCorpus, ...]:
    """The corpora that stock is given, those with windows in the plan, in the plan's order.

    As `BlendedMegatronDatasetBuilder` and `GPTDataset` of Megatron-Core 0.16.1 compute it: a
    blend asks each corpus for ceil(ceil(samples x weight) x (1 + surplus)) windows, a single
    corpus for `samples`; GPTDataset takes as many whole epochs as hold that many windows.
    """
    used = [(i, c) for i, c in enumerate(plan.corpora) if c.windows]
    return tuple(_stock_corpus(plan, i, c, surplus, alone=len(used) == 1) for i, c in used)


def _stock_corpus(
    plan: Plan, index: int, corpus: PlannedCorpus, surplus: float, *, alone: bool
) -> StockCorpus:
    length, tokens = plan.sequence_length, corpus.tokens
    built = plan.samples
    if not alone:
        share = float(corpus.windows) / float(plan.samples)  # in floats, as stock has it
        built = math.ceil(math.ceil(plan.samples * share) * (1 + surplus))
    epochs = max(1, -(-(built * length + 1) // tokens))
    before_last = ((epochs - 1) * tokens - 1) // length
    an_epoch = (tokens - 1) // length
    return StockCorpus(
        name=corpus.name,
        dataset_id=index,
        weight=corpus.windows,
        built=built,
        epochs=epochs,
        last_apart=epochs > 1 and built - before_last < int(_LAST_EPOCH_APART * an_epoch),
    )


def planned_prefixes(
    plan: Plan, prefixes: Mapping[str, str | Path] | None = None
) -> dict[str, Path]:
    """Absolute path prefix of each corpus that the plan trains on, `_text_document` included.

    Args:
        plan: The plan.
        prefixes: Where corpora lie; one that is not named here lies where the plan says.

    Raises:
        ConfigError: A corpus has no path, or is not made yet.
        DataError: There is no indexed dataset at a path, or half of one.
    """
    found = {}
    for corpus in plan.corpora:
        if not corpus.windows:
            continue
        prefix = (prefixes or {}).get(corpus.name) or (corpus.source and corpus.source.data)
        if not prefix:
            raise ConfigError(
                f"the plan trains on corpus {corpus.name!r}, but nothing says where it lies",
                where="blend",
                fix=f"Plan it with data: PREFIX, or give its prefix. "
                f"{nearest_name(corpus.name, prefixes or {})}",
            )
        if corpus.content_hash is None:
            raise ConfigError(
                f"corpus {corpus.name!r} is planned from declared counts: the plan is provisional",
                where="blend",
                fix="Solve the plan again once the corpus is packed.",
            )
        found[corpus.name] = path_prefix(prefix).absolute()
    return found


def require_stock_can(plan: Plan, what: str) -> None:
    """Refuse a plan whose content stock datasets cannot serve in any order.

    Args:
        plan: The plan.
        what: Who is to serve it, for the message: `order: megatron`, `export bridge`.

    Raises:
        ConfigError: A phase, a selection, an order of documents, or attention `document`.
    """
    with _refusing(what):
        started = [c.name for c in plan.corpora if c.start]
        if plan.first_step or started:
            raise ConfigError(
                "stock datasets always begin at a corpus's start, but this plan is a phase that "
                f"goes on after step {plan.first_step:,}"
                + (f" ({', '.join(started)})" if started else ""),
                fix="Train phases with order: strict, or through the dataset provider.",
            )
        for corpus in plan.corpora:
            source = corpus.source
            for key in ("select", "order"):
                if corpus.windows and source is not None and getattr(source, key) is not None:
                    raise ConfigError(
                        f"stock datasets know no {key} of documents, which corpus "
                        f"{corpus.name!r} has",
                        fix="Pack the documents that are meant as a corpus of their own, or use "
                        "order: strict.",
                    )
        if plan.attention == "document":
            raise ConfigError(
                "attention: document has no stock setting that always means the same: "
                "reset_attention_mask is passed over by fused and flash attention",
                fix="Use attention: cross, or serve the plan through the dataset provider.",
            )


def require_stock_order_can(plan: Plan) -> None:
    """Refuse a plan that `order: megatron` cannot keep.

    Raises:
        ConfigError: As `require_stock_can`; another order, a cap, or reshuffle false.
    """
    require_stock_can(plan, "order: megatron")
    with _refusing("order: megatron"):
        if plan.order != "megatron":
            raise ConfigError(f"the plan has order {plan.order}", fix="Solve it with that order.")
        for corpus in plan.corpora:
            if not corpus.windows:
                continue
            if corpus.max_epochs is not None:
                raise ConfigError(
                    f"stock datasets have no caps, but corpus {corpus.name!r} has max_epochs "
                    f"{corpus.max_epochs:g}",
                    fix="Leave max_epochs out, or use order: strict.",
                )
            if not corpus.reshuffle and corpus.windows > corpus.windows_per_epoch:
                raise ConfigError(
                    "stock datasets shuffle epochs together, but corpus "
                    f"{corpus.name!r} has reshuffle: false",
                    fix="Leave reshuffle out, or use order: strict.",
                )


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Name `what` as the place of a refusal."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(error.what, where=error.where or what, fix=error.fix) from None
