"""What counts as a related pair."""

from typing import Literal, Self

from pydantic import Field, model_validator

from megatron_synth.config import Config, Count

PAPER_THRESHOLD = 0.75


class PairConfig(Config):
    """How pairs are chosen from embeddings.

    The paper keeps pairs with a similarity over α = 0.75, measured on Qwen3 embeddings (SBP,
    section A.2). Cosines of another encoder live on another scale, so that number does not carry
    over to a model's own activations: `target_pairs` sets the threshold where it gives that many
    pairs, and the report names it.
    """

    threshold: float | None = Field(default=None, gt=-1, lt=1)
    """Keep pairs with a similarity over this; 0.75 where neither this nor `target_pairs` is set."""
    target_pairs: Count | None = Field(default=None, ge=1)
    """Keep this many of the most similar pairs; the threshold follows from it."""
    neighbours: int = Field(default=200, ge=1, le=2048)
    """Nearest neighbours looked at for each document."""
    index: Literal["auto", "flat", "ivf_flat", "ivf_sq8", "ivf_pq4fs", "hnsw"] = "auto"
    """`auto`: exact up to 50,000 documents, `ivf_pq4fs` beyond (on a GPU `ivf_flat`).
    `ivf_flat`, `ivf_sq8`, `ivf_pq4fs`: √N inverted lists of float16 vectors; of 8 bits a dimension
    (the paper's); of 4-bit residual codes, re-ranked by the float16 vectors. `hnsw`: a graph. Under
    1,000 documents search is exact whatever is set."""
    recall_target: float | None = Field(default=0.9, gt=0, le=1)
    """`nprobe` (and `k_factor`) are tuned on a sample until it finds this share of the true
    neighbours; `null` takes them as set."""
    recall_sample: int = Field(default=500, ge=1)
    """Documents on which recall is measured against exact search."""
    nprobe: int = Field(default=32, ge=1)
    """Inverted lists searched for each query (of about √N), or candidates kept by `hnsw`."""
    k_factor: float = Field(default=2.0, ge=1)
    """`ivf_pq4fs`: candidates that are re-ranked for each neighbour wanted."""
    directions: Literal["both", "one"] = "both"
    """`both`: (a, b) and (b, a) are two training pairs, as each is found. `one`: one of them."""
    max_pairs_per_document: int | None = Field(default=None, ge=1)
    """At most this many d2 for one d1, the most similar ones."""
    drop_near_duplicates: bool = True
    """Drop pairs that share a 13-token shingle."""
    label_key: str | None = None
    """Key of the documents' metadata that says what they are about, one value or a list: the report
    then tells, by similarity, how many neighbours have one in common."""
    icpt_order: bool = False
    """Also write `order.parquet`: all documents, neighbours after each other (in-context
    pretraining), for `order` of a blend's source."""
    min_pairs: Count = 100
    """Refuse to go on with fewer pairs: a synthesizer learns nothing from a handful."""
    threads: int | None = Field(default=None, ge=1)
    """FAISS threads; by default OMP_NUM_THREADS, else the cores this process may use."""
    seed: int = 0
    """Seed of the index's training and of the report's samples."""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.threshold is not None and self.target_pairs is not None:
            raise ValueError("set threshold or target_pairs, not both")
        if self.target_pairs is not None and self.target_pairs < self.min_pairs:
            raise ValueError(
                f"target_pairs ({self.target_pairs}) is below min_pairs ({self.min_pairs})"
            )
        return self

    @property
    def floor(self) -> float | None:
        """The threshold to apply; None where `target_pairs` decides."""
        if self.target_pairs is not None:
            return None
        return PAPER_THRESHOLD if self.threshold is None else self.threshold
