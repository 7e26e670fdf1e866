"""What an experiment will cost, reckoned from its settings before anything is spent."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import Field

from megatron_synth.blending import Plan
from megatron_synth.config import Config, ConfigError, format_count
from megatron_synth.experiments.config import ExperimentConfig, ranks_of
from megatron_synth.models import ModelConfig, count_parameters, training_flops, training_memory
from megatron_synth.training import TrainConfig

_BYTES_A_TOKEN_OF_TEXT = 4.5
"""Of English web text under a vocabulary of 50,000 to 128,000, before compression."""
_COMPRESSED = 0.4
"""zstd on such text."""
_CHECKPOINT_BYTES = 14
"""A parameter in bf16 training: bf16 weights, float32 master weights and two moments."""


class CostConfig(Config):
    """What the reckoning stands on: assumptions, stated beside every figure."""

    gpu: str = "H100"
    """As its maker names it; its dense bf16 peak comes from the data sheet."""
    mfu: float = Field(default=0.355, gt=0, le=1)
    """Model FLOP/s of training as a share of the peak; 0.355 was measured for a 474M model on one
    H100 (docs/benchmarks.md)."""
    output_tokens_per_second: float = Field(default=8300, gt=0)
    """Of a generator on one GPU; 8,300 is SBP's for its 3B synthesizer on a B200 (A.2)."""
    ranks: int | None = Field(default=None, ge=1)
    """GPUs of a training step, for its memory; by default what one copy of the model takes."""


@dataclass(frozen=True)
class StepCost:
    """One step that costs something.

    Attributes:
        step: Its name.
        tokens: Tokens that it trains on, reads or writes.
        flops: Floating-point operations of the model.
        gpu_hours: Hours of one GPU under the assumptions.
        memory: Bytes on one GPU, training only.
        disk: Bytes that stay in the run folder.
        published: What the paper says of the same step.
    """

    step: str
    tokens: int
    flops: float = 0.0
    gpu_hours: float = 0.0
    memory: int | None = None
    disk: int = 0
    published: str | None = None


def planned_costs(
    config: ExperimentConfig, plans: dict[str, Plan], assumed: CostConfig
) -> list[StepCost]:
    """The costs of the steps that cost something, in the order of the experiment.

    Args:
        config: The experiment.
        plans: The solved plan of each arm.
        assumed: Throughputs.

    Raises:
        ConfigError: No peak is known for the GPU.
    """
    model = config.model.model_copy(update={"vocab_size": config.tokenizer.vocab_size})
    found = [
        *_texts(config, plans),
        *(
            _training(f"train.{arm}", model, config.training, plans[arm].tokens, assumed)
            for arm in config.arms
        ),
    ]
    if config.synthetic_arms:
        assert config.synthesizer is not None
        found += [
            _embedding(config, model, assumed),
            _training(
                "train.synthesizer", model, config.synthesizer, config.synthesizer.tokens, assumed
            ),
            _synthesis(config, model, assumed),
        ]
    return [replace(cost, published=config.published.get(cost.step)) for cost in found]


def totals(costs: list[StepCost]) -> StepCost:
    """Everything together; memory is the most of any step."""
    return StepCost(
        "total",
        sum(cost.tokens for cost in costs if cost.step.startswith("train.")),
        sum(cost.flops for cost in costs),
        sum(cost.gpu_hours for cost in costs),
        max((cost.memory for cost in costs if cost.memory is not None), default=None),
        sum(cost.disk for cost in costs),
    )


def cost_table(costs: list[StepCost], assumed: CostConfig) -> str:
    """The costs as a table for a terminal, the assumptions under it."""
    rows = [("step", "tokens", "FLOPs", "GPU hours", "GB a GPU", "GB on disk", "published")]
    for cost in [*costs, totals(costs)]:
        rows.append(
            (
                cost.step,
                format_count(cost.tokens),
                f"{cost.flops:.2e}" if cost.flops else "",
                f"{cost.gpu_hours:,.1f}" if cost.gpu_hours else "",
                f"{cost.memory / 1e9:,.1f}" if cost.memory else "",
                f"{cost.disk / 1e9:,.1f}" if cost.disk else "",
                cost.published or "",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [text.rjust(width) for text, width in zip(row[1:6], widths[1:6], strict=True)]
        lines.append("  ".join([*cells, row[6]]).rstrip())
    lines.append(
        f"Assumed: {assumed.gpu} at {assumed.mfu:.1%} MFU in training, "
        f"{assumed.output_tokens_per_second:,.0f} output tokens/s a GPU in synthesis (filters drop "
        "some of them). Memory is that of bf16 training with one copy of the model "
        f"{'on its fewest GPUs' if assumed.ranks is None else f'on {assumed.ranks} GPUs'}."
    )
    return "\n".join(lines)


def _texts(config: ExperimentConfig, plans: dict[str, Plan]) -> Iterator[StepCost]:
    """Packed corpora and the text that they are made of."""
    width = 2 if config.tokenizer.vocab_size <= 2**16 else 4
    text = _BYTES_A_TOKEN_OF_TEXT * _COMPRESSED
    sizes = {"organic": config.split.organic_tokens, "pool": config.split.pool_tokens}
    if config.synthesis is not None and config.synthesis.tokens is not None:
        sizes["synthetic"] = config.synthesis.tokens
    used = {name for arm in config.arms.values() for name in arm.corpora}
    for name in sorted(used):
        yield StepCost(f"pack.{name}", sizes[name], disk=round(sizes[name] * (width + text)))


def _training(
    step: str, model: ModelConfig, training: TrainConfig, tokens: int, assumed: CostConfig
) -> StepCost:
    flops = training_flops(model, tokens, training.sequence_length)
    hours = flops / (_peak(assumed.gpu) * assumed.mfu) / 3600
    if training.recompute:
        hours *= 4 / 3  # the MFU counts each operation once, however often it is done
    memory = training_memory(
        model,
        training.parallel,
        ranks=assumed.ranks or ranks_of(training),
        micro_batch_size=training.micro_batch_size,
        sequence_length=training.sequence_length,
        recompute=training.recompute,
        distributed_optimizer=training.optimizer.distributed,
    )
    kept = training.keep_checkpoints
    if training.keep_every:
        kept += training.steps // training.keep_every
    disk = count_parameters(model).total * _CHECKPOINT_BYTES * kept
    return StepCost(step, tokens, flops, hours, memory.total, disk)


def _embedding(config: ExperimentConfig, model: ModelConfig, assumed: CostConfig) -> StepCost:
    """By the baseline's own activations; another encoder's size is not known here."""
    tokens = config.split.organic_tokens
    if config.embedding.encoder is not None:
        return StepCost("embed", tokens)
    flops = training_flops(model, tokens, config.split.max_document_tokens) / 3  # forward alone
    return StepCost("embed", tokens, flops, flops / (_peak(assumed.gpu) * assumed.mfu) / 3600)


def _synthesis(config: ExperimentConfig, model: ModelConfig, assumed: CostConfig) -> StepCost:
    assert config.synthesis is not None
    tokens = config.synthesis.tokens or 0
    length = config.synthesis.max_output_tokens or config.split.max_document_tokens
    flops = training_flops(model, tokens, length) / 3
    hours = tokens / assumed.output_tokens_per_second / 3600
    disk = round(tokens * _BYTES_A_TOKEN_OF_TEXT * _COMPRESSED)
    return StepCost("synthesize", tokens, flops, hours, disk=disk)


def _peak(gpu: str) -> float:
    from megatron_synth.training.hardware import peak_flops

    peak = peak_flops(gpu)
    if peak is None:
        raise ConfigError(f"no peak is known for the GPU {gpu!r}", fix="Such as H100, H200, B200.")
    return peak


def as_json_costs(costs: list[StepCost], assumed: CostConfig) -> dict[str, Any]:
    """The costs for a program."""
    return {
        "assumed": assumed.model_dump(),
        "steps": {cost.step: asdict(cost) for cost in costs},
        "total": asdict(totals(costs)),
    }
