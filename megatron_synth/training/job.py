"""A training run as a file: the model, the settings, the data; what the verb `train` runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from megatron_synth.blending import Chain, Plan
from megatron_synth.blending.plan_file import BlendFile
from megatron_synth.config import Config, ConfigError, Count, parse_config
from megatron_synth.models import ModelConfig
from megatron_synth.training.config import TrainConfig


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _data_alone(value: Any) -> Any:
    return {"data": value} if isinstance(value, str) else value


class ValidationSet(Config):
    """A packed corpus whose loss is measured while the model trains."""

    data: Path
    """Prefix of the corpus, with or without `_text_document`."""
    windows: int | None = Field(default=None, ge=1)
    """How many of its windows, the same each time; None: all of one epoch."""


class PairData(Config):
    """What a synthesizer is tuned on (docs/sbp.md)."""

    data: Path
    """Prefix of the packed corpus, its documents in the order in which they were paired."""
    file: Path
    """`pairs.parquet` of `megatron-synth pair`."""
    pairs_per_window: Literal["packed", "one"] = "packed"
    """`packed`: as many whole pairs as fit a window, which do not see each other. `one`: one pair
    a window, the rest of it padding."""
    validation_pairs: Count = 256
    """Pairs that are held out with both of their documents; their loss is `held_out_pairs`. Fewer
    where that would cost a tenth of the pairs. 0: none."""
    seed: int = Field(default=0, ge=0)
    """Draws held-out pairs, windows and their order."""


class SampleSettings(Config):
    """Continuations to look at, likeliest token by likeliest token, into `samples.jsonl`."""

    prompts: tuple[str, ...] = Field(min_length=1)
    """Each is put behind an end-of-text, as a document is."""
    every: int = Field(default=1000, ge=1)
    """Steps between them; they are also taken after the last step."""
    tokens: int = Field(default=64, ge=1)
    """Most tokens of a continuation."""


class TrainJob(Config):
    """What `megatron-synth train` reads. Paths are relative to the current folder.

    `model` and `training` are those of `ModelConfig` and `TrainConfig`. What they leave out is
    filled in: the vocabulary's size from the tokenizer, or else from what packing wrote beside the
    corpora; steps, sequence length and batch from the plans.
    """

    model: dict[str, Any] = Field(default_factory=dict)
    """A preset, or sizes (`ModelConfig`); left out: the model of `init_from` or `branch_from`."""
    training: dict[str, Any] = Field(default_factory=dict)
    """How to train (`TrainConfig`)."""
    plans: Annotated[tuple[Path, ...], BeforeValidator(_listed)] = ()
    """Solved plans (`blend plan --out`), the phases of the run in order. Those that are done need
    not be given again."""
    blend: BlendFile | None = None
    """In place of `plans`: a plan's file, inline."""
    pairs: PairData | None = None
    """In place of `plans`: pairs of related documents, to tune a synthesizer; needs `tokenizer`,
    and steps, sequence length and batch in `training`."""
    data: dict[str, Path] = Field(default_factory=dict)
    """Where corpora lie, by name, if not where the plans say."""
    tokenizer: str | None = None
    """What the corpora were packed with: makes sure of it, and of the vocabulary's size."""
    validation: dict[str, Annotated[ValidationSet, BeforeValidator(_data_alone)]] = Field(
        default_factory=dict
    )
    """Validation sets, by name: a prefix each, or `{data: PREFIX, windows: 200}`."""
    samples: SampleSettings | None = None
    """What the model makes of a few prompts; needs `tokenizer`."""
    init_from: Path | None = None
    """Checkpoint, Hugging Face folder, or distributed checkpoint of Megatron's (`iter_XXXXXXX`;
    `model` has to be given then) whose weights a new run starts from."""
    init_optimizer: Literal["reset", "keep"] = "reset"
    """Whether the optimizer's state comes from there too."""
    branch_from: Path | None = None
    """Checkpoint to go on from as at a resume, in another folder and under another schedule: WSD's
    decay branch. `training.steps` counts the whole run."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.plans) + (self.blend is not None) + (self.pairs is not None) != 1:
            raise ValueError("set plans, blend or pairs, one of them")
        if self.pairs is not None and self.tokenizer is None:
            raise ValueError("pairs need the tokenizer, for its separator: set tokenizer")
        if self.samples is not None and self.tokenizer is None:
            raise ValueError("samples need the tokenizer: set tokenizer")
        if self.init_from is not None and self.branch_from is not None:
            raise ValueError("init_from and branch_from are both set; set one of them")
        return self

    def chain(self) -> Chain:
        """The phases of the run.

        Raises:
            ConfigError: A plan does not follow the one before it, or cannot be solved.
            DataError: No such plan, or it is damaged.
        """
        if self.blend is not None:
            return Chain([*self.blend.solve().values()])
        return Chain([Plan.load(path) for path in self.plans])


def training_of(job: TrainJob, chain: Chain, where: str) -> TrainConfig:
    """How to train, with what the plans decide filled in.

    Raises:
        ConfigError: A setting is wrong, or contradicts the plans.
    """
    plan = chain.plans[-1]
    decided = {"sequence_length": plan.sequence_length, "global_batch_size": chain.batch}
    windows = chain.steps * chain.batch
    ramp = bool(job.training.get("batch_ramp"))  # then there are more steps than the plan's
    tree = {"steps": windows if ramp else chain.steps, **decided, **job.training}
    training = parse_config(tree, TrainConfig, where=f"{where}: training")
    if ramp and "steps" not in job.training:
        tree["steps"] = training.batch_sizes.steps_for(windows)
        training = parse_config(tree, TrainConfig, where=f"{where}: training")
    for name, planned in decided.items():
        if getattr(training, name) != planned:
            raise ConfigError(
                f"{name} is {getattr(training, name)}, the plan's is {planned}",
                where=f"{where}: training.{name}",
                fix="Leave it out, or plan the blend with this value.",
            )
    lengths = {p.sequence_length for p in chain.plans}
    if len(lengths) > 1:
        raise ConfigError(
            f"the phases have windows of {' and '.join(map(str, sorted(lengths)))} tokens",
            where=where,
            fix="Train the phases as runs of their own, each with init_from.",
        )
    plateau = training.stopping.plateau
    if plateau is None or plateau.epoch_steps is not None:
        return training
    windows = sum(c.windows_per_epoch for c in plan.corpora if c.windows)
    plateau = plateau.model_copy(update={"epoch_steps": -(-windows // chain.batch)})
    stopping = training.stopping.model_copy(update={"plateau": plateau})
    return training.model_copy(update={"stopping": stopping})


def model_of(job: TrainJob, chain: Chain, where: str) -> ModelConfig:
    """What to train, with the vocabulary's size filled in.

    Raises:
        ConfigError: A size is wrong; the vocabulary is smaller than the tokenizer's; the corpora
            were packed with another tokenizer.
        DataError: No such tokenizer or start, or it is damaged.
    """
    from megatron_synth.training.starting import model_at

    needed, by = _vocabulary(job, chain)
    start = job.init_from or job.branch_from
    tree = dict(job.model)
    if not tree and start is not None:
        tree = model_at(start).model_dump(mode="json")
    if not tree:
        raise ConfigError(
            "says nothing of the model",
            where=f"{where}: model",
            fix="Give a preset or sizes, or init_from a model.",
        )
    if needed is not None and tree.get("vocab_size") is None and not _has_vocabulary(tree):
        tree["vocab_size"] = needed
    model = parse_config(tree, ModelConfig, where=f"{where}: model")
    if needed is not None and model.vocab_size < needed:
        raise ConfigError(
            f"the model's vocabulary is smaller than the tokenizer's: vocab_size is "
            f"{model.vocab_size:,}, {by} has {needed:,} ids",
            where=f"{where}: model.vocab_size",
            fix="Leave vocab_size out, raise it, or use the tokenizer that the model is made for.",
        )
    return model


def _has_vocabulary(tree: Mapping[str, Any]) -> bool:
    from megatron_synth.models import PRESETS

    return PRESETS.get(str(tree.get("preset")), {}).get("vocab_size") is not None


def _vocabulary(job: TrainJob, chain: Chain) -> tuple[int | None, str]:
    """Ids that the data may hold, and who says so."""
    from megatron_synth.packing.beside import info_of
    from megatron_synth.packing.reader import IndexedReader
    from megatron_synth.tokens import Tokenizer

    served = {c.name: c for plan in chain.plans for c in plan.corpora if c.windows}
    if job.tokenizer is not None:
        tokenizer = Tokenizer.load(job.tokenizer)
        for corpus in served.values():
            if corpus.tokenizer not in (None, tokenizer.fingerprint):
                raise ConfigError(
                    f"corpus {corpus.name!r} was packed with another tokenizer "
                    f"({str(corpus.tokenizer)[:12]}, this one is {tokenizer.fingerprint[:12]})",
                    where=job.tokenizer,
                    fix="Give the tokenizer that it was packed with, or pack it anew.",
                )
        return tokenizer.vocab_size, f"tokenizer {job.tokenizer}"
    largest: tuple[int | None, str] = (None, "")
    for corpus in served.values():
        prefix = job.data.get(corpus.name) or (corpus.source and corpus.source.data)
        info = info_of(IndexedReader(prefix)) if prefix else None
        if info is not None and info.vocab_size > (largest[0] or 0):
            largest = info.vocab_size, f"the tokenizer of corpus {corpus.name!r}"
    return largest
