"""Settings of a synthesis step."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from megatron_synth.config import Config, Count
from megatron_synth.engines import EngineConfig, VllmConfig
from megatron_synth.synthesis.methods.defaults import (
    DEFAULTS,
    PROMPTLESS,
    LongInput,
    MethodName,
)
from megatron_synth.synthesis.mideval_config import GateConfig


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
    refusals: bool = True
    """Drop an answer that begins by saying that it will not be given (`phrases.REFUSALS`)."""
    prompt_phrase_words: int | None = Field(default=7, ge=3)
    """Drop a document that repeats a sentence or line of its prompt with at least so many words,
    unless it stands in the source; null: off. Methods without a prompt text have none."""
    max_times_target: float | None = Field(default=3.0, gt=0)
    """Drop a document with more than so many times the tokens that its method aims at
    (`methods.defaults`); null: off. Methods that aim at no length have no such limit."""
    special_spellings: bool = False
    """Drop a document that spells out a control token of a widely used tokenizer. Off, since such
    a spelling is data: packing makes no control token of it."""
    language: bool = False
    """Drop a document in another language than its source (py3langid, both certain at 0.9)."""


class RayConfig(Config):
    """The Ray that NeMo Curator's executor runs on."""

    executor: Literal["ray_data", "inline"] = "ray_data"
    """`ray_data`: Curator's executor on a Ray of our own, started for the step and ended with it.
    `inline`: the same stages one after the other in this process, without Ray."""
    address: str | None = None
    """A running Ray cluster to work on, such as `10.0.0.1:6379`, or `auto` for the one that this
    machine belongs to. It is joined and left; nothing of it is started or ended, and other work
    may be on it. Not set: a Ray of our own."""
    num_cpus: int | None = Field(default=None, ge=2)
    """CPUs that a Ray of our own may count on: one for the stages after generation, the rest for
    engines. Not set: one more than engines."""
    object_store_mb: int | None = Field(default=None, ge=80)
    """Memory of a Ray of our own for what stages hand each other; not set: 128."""
    worker_restarts: int = Field(default=3, ge=0)
    """How often a generation worker that died is started anew before the step fails."""
    slurm_array: int | None = Field(default=None, ge=1)
    """Tasks of the Slurm array that the same command runs in, `sbatch --array=0-N` with N one less:
    each makes its share of the shards, the one that ends last joins them. Of the verb
    `synthesize` only; not set: this process makes all, whatever Slurm says."""

    @model_validator(mode="after")
    def _whose_ray(self) -> Self:
        if self.address is None:
            return self
        for name in ("num_cpus", "object_store_mb"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is for a Ray of our own: the one at address has its size")
        if self.executor == "inline":
            raise ValueError("the inline executor uses no Ray: address says nothing")
        if not re.fullmatch(r"auto|[^:/]+:\d{1,5}", self.address):
            raise ValueError(
                f"address={self.address} is neither HOST:PORT nor auto; the command must run on "
                "a node of the cluster, not through a Ray client"
            )
        return self


Audience = Literal["grade school", "college", "experts", "general public"]
NemotronPrompt = Literal[
    "diverse_qa", "distill", "extract_knowledge", "knowledge_list", "wikipedia"
]
_DEFAULTED = ("temperature", "top_p", "max_output_tokens", "max_input_tokens", "long_input")


def _as_files(value: object) -> object:
    """One file may stand alone."""
    return [value] if isinstance(value, (str, Path)) else value


class SynthesisConfig(Config):
    """What to generate, how much of it, and how."""

    method: MethodName = "sbp"
    """One of METHODS 1."""
    tokens: Count | None = Field(default=None, gt=0)
    """Kept tokens to produce, counted as they are packed: with one EOS a document. Not set: every
    source document `generations` times; sbp and self_distill have no end and need it."""
    generations: int = Field(default=1, ge=1)
    """Different documents to make of each source document, G of METHODS 1; for latent_thoughts
    the points at which it is split. sbp and self_distill draw instead."""
    prompt_file: Annotated[tuple[Path, ...], BeforeValidator(_as_files)] = ()
    """Files that replace the method's prompts; where it has several, the form of answer that a
    file names says which."""
    max_input_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of a source document in one prompt; less where the context is too short for
    them. Not set: the method's own, 2,048 for most."""
    long_input: LongInput | None = None
    """What becomes of a longer source document. `cut`: its beginning is used. `chunk`: it is
    asked about in equal pieces, and the answers are joined. `skip`: it is left out. Not set: the
    method's own, `cut` for most. The counts say how many documents it happened to."""
    audiences: tuple[Audience, ...] = Field(default=get_args(Audience), min_length=1)
    """Whom textbooks are for; each book draws one."""
    nemotron_prompt: NemotronPrompt = "diverse_qa"
    """Which of NeMo Curator's own prompts nemotron_cc uses."""
    max_requests: Count | None = None
    """Give up after so many documents were asked for; not set: with `tokens`, one for every 10 of
    them, at least 1,000; else all."""
    allow_short: bool = False
    """When the documents end before `tokens`, keep what there is, instead of failing; and when
    nothing but requests without an answer is left after a restart, record them as failed."""
    min_kept_share: float = Field(default=0.02, ge=0, le=1)
    """Stop early when fewer of the first documents than this pass the filters; 0 never stops."""
    min_kept_after: int = Field(default=256, ge=1)
    """Documents a shard makes before `min_kept_share` is looked at."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides what is drawn, and each request's own sampling seed."""
    round: int = Field(default=0, ge=0)
    """Recorded with every document: which refresh of the synthetic data it belongs to."""
    licence: str | None = None
    """Licence of the product as its dataset card gives it, such as `cc-by-4.0`."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; not set: the method's own (docs/synthesis.md)."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Share of probability kept at each token; not set: the method's own."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Longest answer with its EOS; not set: the method's own, and half of the model's context for
    sbp, as in the paper."""
    shards: int = Field(default=1, ge=1)
    """Pieces of the work, each with its own log; they share out the documents to be made, and
    each makes its share of `tokens`."""
    workers: int = Field(default=1, ge=1)
    """Engines that run at the same time; no more than shards are used."""
    tries: int = Field(default=3, ge=1)
    """How often a request is asked in all, when it fails for a passing reason, and again when its
    answer has not the form that the prompt asks for."""
    filters: FilterConfig = FilterConfig()
    """What is dropped."""
    mideval: GateConfig | None = None
    """Look at the first documents before the others are made (docs/mideval.md)."""
    engine: EngineConfig = VllmConfig()
    """The generator's engine."""
    ray: RayConfig = RayConfig()
    """Where the stages run."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """What is not set is the method's own."""
        if not isinstance(values, dict):
            return values
        defaults = DEFAULTS.get(values.get("method", "sbp"))
        if defaults is None:  # no such method; the field says so
            return values
        own = {name: getattr(defaults, name) for name in _DEFAULTED}
        return {
            **own,
            **{name: v for name, v in values.items() if v is not None or name not in own},
        }

    @model_validator(mode="after")
    def _refuse_what_means_nothing(self) -> Self:
        promptless = self.method in PROMPTLESS
        if promptless and self.tokens is None:
            raise ValueError(f"{self.method} draws without end: set tokens")
        fields = type(self).model_fields
        used = {
            "generations": not promptless,
            "prompt_file": not promptless and self.method != "nemotron_cc",
            "max_input_tokens": not promptless,
            "long_input": not promptless,
            "audiences": self.method == "textbook",
            "nemotron_prompt": self.method == "nemotron_cc",
        }
        for name, applies in used.items():
            if not applies and getattr(self, name) != fields[name].default:
                raise ValueError(f"{self.method} has no use for {name}")
        if self.method == "latent_thoughts" and self.long_input != "skip":
            raise ValueError("latent_thoughts reads whole documents: long_input must be skip")
        if (self.ray.slurm_array or 1) > self.shards:
            raise ValueError(
                f"ray.slurm_array={self.ray.slurm_array} tasks share {self.shards} shards: "
                "set shards to as many or more"
            )
        engines = min(self.workers, self.shards)
        if self.ray.num_cpus is not None and self.ray.num_cpus <= engines:
            raise ValueError(
                f"ray.num_cpus={self.ray.num_cpus} leaves none beside {engines} engines: set at "
                f"least {engines + 1}, or nothing"
            )
        for name in ("max_copies", "max_irrelevant"):
            if self.method == "self_distill" and getattr(self.mideval, name, None) is not None:
                raise ValueError(f"self_distill has no sources: mideval.{name} says nothing")
        return self

    @property
    def request_cap(self) -> int | None:
        """Most documents asked for, over all shards; None for all that there are."""
        if self.max_requests or self.tokens is None:
            return self.max_requests
        return max(1000, self.tokens // 10)
