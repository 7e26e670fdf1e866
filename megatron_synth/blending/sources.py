"""What a corpus of a plan is: where it lies, which of its documents are meant, in which order."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from megatron_synth.config import Config, Count


class DeclaredSize(Config):
    """Counts of a corpus that is not made yet."""

    tokens: Count
    """Tokens after packing, each document's EOS included."""
    documents: Count
    """Documents."""
    within: float = Field(default=0.05, ge=0, le=1)
    """Once the corpus is there, its counts may differ from these by this share at most."""


class SelectConfig(Config):
    """Which documents of a corpus are used: those with the highest scores, or a mask.

    Scores come from a `.npy` file, float[documents] in the corpus's order, or from a Parquet file
    with the score's column and a column `id`, which is matched with the corpus's side table of
    provenance. Equal scores are settled by the documents' order. Nothing is rewritten.
    """

    file: Path
    """`.npy` with a score (or a mask, bool) of each document, or `.parquet` with `id` and score."""
    column: str = "score"
    """Column of the scores in a Parquet file."""
    top: float | None = Field(default=None, gt=0, le=1)
    """The highest-scored share, rounded down to whole documents."""
    of: Literal["documents", "tokens"] = "documents"
    """What `top` is a share of."""
    above: float | None = None
    """Documents with a score over this."""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.top is not None and self.above is not None:
            raise ValueError("top and above are both set; set one of them, or none for a mask")
        if self.file.suffix not in (".npy", ".parquet"):
            raise ValueError(f"{self.file.name} is neither .npy nor .parquet")
        if self.file.suffix == ".parquet" and self.top is None and self.above is None:
            raise ValueError("scores need top or above")
        return self


class SourceConfig(Config):
    """One corpus: packed data, or the counts it will have; at least one of the two."""

    data: Path | None = None
    """Prefix of the packed corpus, with or without `_text_document`."""
    declared: DeclaredSize | None = None
    """What to plan from while the data is not there."""
    select: SelectConfig | None = None
    """Use only some of its documents. `declared` then counts these alone."""
    order: Path | None = None
    """An order of documents: `.npy` with document numbers, int[documents], or `.parquet` with
    a column `document`. Documents are then concatenated in this order in every epoch (in-context
    pretraining); windows are permuted as always."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.data is None and self.declared is None:
            raise ValueError("set data (a packed corpus), declared (its counts), or both")
        return self
