"""Where a new run's weights come from: our checkpoint, another's, or a Hugging Face folder."""

from pathlib import Path
from typing import Any

from megatron_synth.config import ConfigError
from megatron_synth.models import ModelConfig
from megatron_synth.models.hugging_face_config import read_hugging_face_config
from megatron_synth.training.checkpoints import STATE, load_weights, read_state
from megatron_synth.training.megatron_checkpoint import is_megatron, load_megatron
from megatron_synth.training.resume import require_same_model

_CONFIG = "config.json"


def is_hugging_face(start: Path) -> bool:
    """Whether `start` is a Hugging Face folder, not a checkpoint of ours."""
    return (start / _CONFIG).is_file() and not (start / STATE).is_file()


def model_at(start: Path) -> ModelConfig:
    """What the model at `start` is.

    Raises:
        ConfigError: A Hugging Face model of a kind that is not built here, or a checkpoint that
            does not say what its model is.
        DataError: None of these, or damaged.
    """
    if is_megatron(start):
        raise ConfigError(
            "is a checkpoint of Megatron's, which does not say here what its model is",
            where=start,
            fix="Give `model`: its preset, or its sizes.",
        )
    return read_hugging_face_config(start) if is_hugging_face(start) else read_state(start).model


def load_start(start: Path, model: Any, config: ModelConfig) -> None:
    """Load the weights at `start` into this rank's part of a model, in any layout.

    A Hugging Face folder is read whole by every rank.

    Args:
        start: A checkpoint `step_XXXXXXXX`, a Hugging Face folder, or a distributed checkpoint of
            Megatron's (`iter_XXXXXXX`).
        model: This rank's part.
        config: What the model is.

    Raises:
        ConfigError: The weights are of another model.
        DataError: A file is missing or damaged.
    """
    if is_megatron(start):
        load_megatron(start, model)
        return
    require_same_model(model_at(start), config, start)
    if not is_hugging_face(start):
        load_weights(start, model)
        return
    from megatron_synth.models.hugging_face_reader import read_hugging_face
    from megatron_synth.models.initial_weights import load_whole_weights

    _, weights = read_hugging_face(start)
    load_whole_weights(model, weights)


def require_checkpoint(start: Path, why: str) -> None:
    """Refuse weights alone where more is needed.

    Raises:
        ConfigError: `start` is no checkpoint of ours.
    """
    if is_megatron(start):
        raise ConfigError(
            f"is a checkpoint of Megatron's, of which weights alone are taken; {why}",
            where=start,
            fix="Leave init_optimizer out: the optimizer then begins anew.",
        )
    if is_hugging_face(start):
        raise ConfigError(
            f"is a Hugging Face folder, which holds weights alone; {why}",
            where=start,
            fix="Leave init_optimizer out: the optimizer then begins anew.",
        )
