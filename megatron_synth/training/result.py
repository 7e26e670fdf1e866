"""What a finished run came to."""

from dataclasses import dataclass
from pathlib import Path

from megatron_synth.models import ModelConfig, ParameterCounts, count_parameters, training_flops
from megatron_synth.training.checkpoints import CheckpointState


@dataclass(frozen=True)
class TrainResult:
    """What a finished run came to.

    Attributes:
        checkpoint: The final checkpoint.
        steps: Optimizer steps.
        tokens: Tokens of all windows consumed, masked ones included.
        loss: Training loss of the last step, nats a token.
        validation: Loss by validation set after the last step.
        tokens_per_second: Over all steps and all tries, without start, evaluation and saving.
        parameters: Parameter counts of the model.
        flops: Floating-point operations of all steps, by formula.
        seconds: Time of all steps in all tries.
        saturated: Whether the plateau rule ended the run before its last step.
        best: The checkpoint of the best epoch, where the plateau rule is on and an epoch is done.
    """

    checkpoint: Path
    steps: int
    tokens: int
    loss: float
    validation: dict[str, float]
    tokens_per_second: float
    parameters: ParameterCounts
    flops: float
    seconds: float
    saturated: bool = False
    best: Path | None = None


def result_of(
    checkpoint: Path, state: CheckpointState, model: ModelConfig, *, saturated: bool, best: Path
) -> TrainResult:
    """The result of a run that ended with `checkpoint`; `best` is the folder of the best one."""
    length = state.train.sequence_length
    tokens = state.samples * length
    return TrainResult(
        checkpoint=checkpoint,
        steps=state.step,
        tokens=tokens,
        loss=state.loss,
        validation=state.validation,
        tokens_per_second=tokens / state.seconds,
        parameters=count_parameters(model),
        flops=training_flops(model, tokens, length),
        seconds=state.seconds,
        saturated=saturated,
        best=next(iter(sorted(best.glob("step_*"))), None) if best.is_dir() else None,
    )
