"""Settings of mideval: of the verb, and of the gate inside a synthesis step."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from megatron_synth.config import Config, Count
from megatron_synth.engines import EngineConfig

Share = Field(default=None, ge=0, le=1)

LIMITS = {
    "repetition": "max_repetition",
    "near_duplicates": "max_near_duplicates",
    "copies": "max_copies",
    "irrelevant": "max_irrelevant",
    "factual_errors": "max_factual_errors",
}
"""Figures, each with the setting that limits it."""


class MidevalLimits(Config):
    """What may be found, and how a judge is asked; a limit that is not set stops nothing."""

    max_characters: int = Field(default=12_000, ge=100)
    """A judge sees no more than this of a text; how many were cut is counted."""
    max_answer_tokens: int = Field(default=16, ge=1)
    """Longest answer of the judge; a model that thinks aloud first needs more."""
    min_judged_share: float = Field(default=0.9, ge=0, le=1)
    """Share of the questions that the judge must answer in the form asked for."""
    max_repetition: float | None = Share
    """Share of documents in which some 13-token shingle occurs more than once."""
    max_near_duplicates: float | None = Share
    """Share of documents that repeat an earlier one (Jaccard of at least 0.6, estimated)."""
    max_copies: float | None = Share
    """Share of documents that are near-duplicates of their source."""
    max_irrelevant: float | None = Share
    """Share of documents that have nothing to do with their source, by the judge."""
    max_factual_errors: float | None = Share
    """Share of documents with a factual error, by the judge."""
    engine: EngineConfig | None = None
    """How the judge is asked (docs/engines.md); not set: vLLM with the judge's folder."""


class MidevalConfig(MidevalLimits):
    """What is looked at, and what may be found."""

    samples: Count = Field(default=1000, ge=1)
    """Documents for repetition, copying and relevance."""
    factuality_samples: Count = Field(default=10_000, ge=1)
    """Documents for factuality."""
    duplicate_samples: Count = Field(default=100_000, ge=1)
    """Documents, the first of the corpus, among which near-duplicates are looked for; 1M in the
    paper, which takes 4 GB of memory."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides which documents are drawn."""


class GateConfig(MidevalLimits):
    """Mideval of the first documents of a synthesis step, before the others are paid for."""

    samples: Count = Field(default=1000, ge=1)
    """Documents that are made first and looked at; they are part of the product."""
    min_kept_share: float | None = Share
    """Share of them that must pass the step's filters."""
    judge: Path | None = None
    """The judge's folder in Hugging Face form; an `engine` of the kind `endpoint` needs none.
    Without a judge relevance and factuality are not measured."""

    @property
    def has_judge(self) -> bool:
        """Whether a judge is named."""
        return self.judge is not None or self.engine is not None

    @model_validator(mode="after")
    def _refuse_limits_without_judge(self) -> Self:
        if self.engine is not None and self.engine.kind != "endpoint" and self.judge is None:
            raise ValueError(f"an engine of the kind {self.engine.kind} needs judge, its folder")
        for name in ("max_irrelevant", "max_factual_errors"):
            if getattr(self, name) is not None and not self.has_judge:
                raise ValueError(f"{name} needs a judge: set judge, or engine with kind endpoint")
        return self
