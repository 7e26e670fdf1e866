"""An experiment as a user writes it: one question, its arms, and the settings that they share."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from megatron_synth.blending import BlendConfig, Budget
from megatron_synth.blending.config import Corpora
from megatron_synth.config import Config, Count
from megatron_synth.corpus.importing import ImportConfig
from megatron_synth.corpus.splitting import SplitConfig
from megatron_synth.engines.embedding import EmbedConfig
from megatron_synth.evaluation.quality import QualityConfig
from megatron_synth.models import ModelConfig
from megatron_synth.packing import PackConfig
from megatron_synth.pairing import PairConfig
from megatron_synth.synthesis import SynthesisConfig
from megatron_synth.tokens import TokenizerConfig
from megatron_synth.training import TrainConfig

CorpusName = Literal["organic", "pool", "synthetic"]


class ArmConfig(Config):
    """One arm: what it trains on. Everything else is the same for all arms."""

    label: str = ""
    """How the report calls it; the arm's key by default."""
    role: Literal["baseline", "method", "oracle", "other"] = "other"
    """`baseline`: what the others are compared with. `oracle`: the one with unlimited fresh
    data. Recovery ratios are of `method` arms between the two."""
    corpora: Corpora
    """`organic` (D), `pool` (D and fresh documents, for an oracle), `synthetic` (S), each with
    `tokens`, `share`, `epochs` or `max_epochs`; one without any fills the budget."""

    @model_validator(mode="after")
    def _known_corpora(self) -> Self:
        known = CorpusName.__args__  # type: ignore[attr-defined]
        unknown = sorted(set(self.corpora) - set(known))
        if unknown:
            raise ValueError(f"no corpus {', '.join(unknown)}; there are {', '.join(known)}")
        return self


class TuningConfig(TrainConfig):
    """Synthesizer tuning: the loss is on the second document of each pair alone."""

    pairs_per_window: Literal["packed", "one"] = "packed"
    """`packed`: as many whole pairs as fit a window, which do not see each other. `one`: one pair
    a window, the rest of it padding."""
    validation_pairs: Count = 256
    """Pairs that are held out with both of their documents, and on which the loss is measured
    every `eval_every` steps; fewer where that would cost a tenth of the pairs. 0: none."""


class EvaluationConfig(Config):
    """How the arms are compared."""

    curve_windows: int = Field(default=64, ge=0)
    """Validation windows behind each point of the validation curve; 0: no curve."""
    resamples: int = Field(default=10_000, ge=100)
    """Bootstrap resamples of the held-out documents."""
    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap."""


class ExperimentConfig(Config):
    """A question, the arms that answer it, and what they share."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run folder."""
    question: str
    """What the experiment asks, one sentence."""
    notes: tuple[str, ...] = ()
    """Sentences that belong under the answer: limits of what is measured."""
    published: dict[str, str] = {}
    """Costs that the paper states, by step (`train.sbp`); shown beside ours by `plan`."""
    corpus: ImportConfig = ImportConfig()
    """The organic text."""
    split: SplitConfig = SplitConfig()
    """What is held out, D, and the oracle's pool."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """Trained on the imported corpus, held-out documents apart."""
    packing: PackConfig = PackConfig()
    """How documents become token ids."""
    model: ModelConfig
    """What every arm trains; `vocab_size` follows the tokenizer."""
    training: TrainConfig
    """How every arm is trained; steps x global_batch_size x sequence_length is the budget."""
    blend_seed: int = Field(default=0, ge=0)
    """Order of documents and windows."""
    embedding: EmbedConfig = EmbedConfig()
    """How D's documents become vectors, by the baseline's own activations."""
    pairing: PairConfig = PairConfig()
    """Which documents of D are related."""
    synthesizer: TuningConfig | None = None
    """Synthesizer tuning, from the baseline's checkpoint; needed where an arm uses `synthetic`."""
    synthesis: SynthesisConfig | None = None
    """Generation of S; needed where an arm uses `synthetic`."""
    arms: dict[str, ArmConfig] = Field(min_length=1)
    """The arms, by name, in the order of the report."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How they are compared."""
    quality: QualityConfig | None = None
    """The quality table of S beside D's (docs/quality.md); a judge is an endpoint here."""

    @model_validator(mode="after")
    def _roles(self) -> Self:
        for role in ("baseline", "oracle"):
            arms = [name for name, arm in self.arms.items() if arm.role == role]
            if len(arms) > 1:
                raise ValueError(f"more than one arm is the {role}: {', '.join(arms)}")
        if self.synthetic_arms:
            if self.baseline is None:
                raise ValueError("an arm uses synthetic text, so one must have role: baseline")
            if self.baseline in self.synthetic_arms:
                raise ValueError("the baseline cannot use synthetic text: its model makes it")
            missing = [k for k in ("synthesizer", "synthesis") if getattr(self, k) is None]
            if missing:
                using = ", ".join(self.synthetic_arms)
                raise ValueError(f"arm {using} uses synthetic text: set {' and '.join(missing)}")
        return self

    @model_validator(mode="after")
    def _judge_is_elsewhere(self) -> Self:
        engine = self.quality and self.quality.engine
        if engine and engine.kind != "endpoint":
            raise ValueError(
                "quality.engine: an experiment asks a judge at an endpoint; with a model's folder, "
                "use the verb `corpus quality`"
            )
        return self

    @model_validator(mode="after")
    def _a_step_is_one_job(self) -> Self:
        if self.synthesis is not None and self.synthesis.ray.slurm_array is not None:
            raise ValueError(
                "synthesis.ray.slurm_array: a step of an experiment is one job; synthesis.workers "
                "spreads it over GPUs, and the verb `synthesize` runs in an array"
            )
        return self

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if self.split.max_document_tokens >= self.training.sequence_length:
            raise ValueError(
                f"split.max_document_tokens={self.split.max_document_tokens} must be below "
                f"training.sequence_length={self.training.sequence_length}: "
                "a document and its EOS fit one window"
            )
        if any(settings and settings.batch_ramp for settings in (self.training, self.synthesizer)):
            raise ValueError("batch_ramp is for the verb train: arms are compared step by step")
        return self

    @property
    def baseline(self) -> str | None:
        """The arm that others are compared with."""
        return next((n for n, arm in self.arms.items() if arm.role == "baseline"), None)

    @property
    def oracle(self) -> str | None:
        """The arm with fresh data."""
        return next((n for n, arm in self.arms.items() if arm.role == "oracle"), None)

    @property
    def synthetic_arms(self) -> list[str]:
        """Arms that train on S."""
        return [name for name, arm in self.arms.items() if "synthetic" in arm.corpora]

    def blend(self, arm: str) -> BlendConfig:
        """The blend of one arm: its corpora, and the budget that all arms share."""
        return BlendConfig(
            budget=Budget(steps=self.training.steps),
            sequence_length=self.training.sequence_length,
            global_batch_size=self.training.global_batch_size,
            seed=self.blend_seed,
            corpora=self.arms[arm].corpora,
        )


def ranks_of(training: TrainConfig) -> int:
    """Fewest ranks that hold one copy of the model.

    Experts are spread over the ranks of a pipeline stage, so expert parallelism beyond the
    tensor- and context-parallel ranks needs further ones.
    """
    dense = training.tensor_parallel * training.context_parallel
    stage = math.lcm(dense, training.expert_parallel)
    return stage * training.pipeline_parallel
