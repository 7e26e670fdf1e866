"""Settings of a synthesis step."""

from typing import Literal

from pydantic import Field

from megatron_synth.config import Config, Count
from megatron_synth.engines import VllmConfig


class FilterConfig(Config):
    """Which documents are dropped after generation (METHODS 1, light filter)."""

    min_tokens: int = Field(default=50, ge=0)
    """Fewest tokens of a document."""
    finished: bool = True
    """Drop what reached `max_output_tokens` before it ended by itself."""
    repeated_shingle: bool = True
    """Drop a document in which some 13-token shingle occurs more than once."""
    max_copied_share: float = Field(default=0.6, ge=0, le=1)
    """Drop a document when more than this share of its 13-token shingles stands in its source.
    Our own choice: with the 0.6 that METHODS takes for near-duplicates (Jaccard), it drops all of
    those and copies of a part besides. 1 keeps everything."""


class RayConfig(Config):
    """The Ray that NeMo Curator's executor runs on."""

    executor: Literal["ray_data", "inline"] = "ray_data"
    """`ray_data`: Curator's executor on a Ray of our own, started for the step and ended with it.
    `inline`: the same stages one after the other in this process, without Ray."""
    num_cpus: int = Field(default=2, ge=2)
    """CPUs that Ray may count on: one for the stages after generation, the rest for engines."""
    object_store_mb: int = Field(default=128, ge=80)
    """Memory for what stages hand each other."""
    worker_restarts: int = Field(default=3, ge=0)
    """How often a generation worker that died is started anew before the step fails."""


class SynthesisConfig(Config):
    """What to generate, how much of it, and how."""

    method: Literal["sbp"] = "sbp"
    """One of METHODS 1."""
    tokens: Count = Field(gt=0)
    """Kept tokens to produce, counted as they are packed: with one EOS a document."""
    max_requests: Count | None = None
    """Give up after so many requests; not set: one for every 10 tokens asked for, at least
    1,000."""
    allow_short: bool = False
    """At `max_requests` keep what there is, instead of failing."""
    min_kept_share: float = Field(default=0.02, ge=0, le=1)
    """Stop early when fewer of the first documents than this pass the filters; 0 never stops."""
    min_kept_after: int = Field(default=256, ge=1)
    """Documents a shard makes before `min_kept_share` is looked at."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides which seeds are drawn and each request's own sampling seed."""
    round: int = Field(default=0, ge=0)
    """Recorded with every document: which refresh of the synthetic data it belongs to."""
    licence: str | None = None
    """Licence of the product as its dataset card gives it, such as `cc-by-4.0`."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Share of probability kept at each token."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Longest answer with its EOS; not set: half of the model's context, as in the paper."""
    shards: int = Field(default=1, ge=1)
    """Pieces of the work, each with its own log; request j belongs to shard j mod shards, and
    each shard makes its share of `tokens`."""
    workers: int = Field(default=1, ge=1)
    """Engines that run at the same time; no more than shards are used."""
    tries: int = Field(default=3, ge=1)
    """How often a request that failed for a passing reason is asked in all."""
    filters: FilterConfig = FilterConfig()
    """What is dropped."""
    engine: VllmConfig = VllmConfig()
    """The generator's engine."""
    ray: RayConfig = RayConfig()
    """Where the stages run."""

    @property
    def request_cap(self) -> int:
        """Most requests over all shards."""
        return self.max_requests or max(1000, self.tokens // 10)
