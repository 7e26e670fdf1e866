"""A Hugging Face folder as a model of ours."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from megatron_synth.config import ConfigError, DataError
from megatron_synth.models.config import ModelConfig
from megatron_synth.models.hugging_face_config import read_hugging_face_config
from megatron_synth.models.hugging_face_weights import from_hugging_face, hugging_face_shapes

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def read_hugging_face(folder: Path) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Read a Llama, Qwen3, Qwen3-MoE, OLMo2 or OLMoE model; nothing is downloaded or executed.

    Names, shapes and settings are checked before any weight is read.

    Args:
        folder: It holds config.json and model.safetensors, or shards and their index.

    Returns:
        The model's config, and its weights in their stored type for `load_whole_weights`. The
        vocabulary's padding is zeros.

    Raises:
        ConfigError: The model is of a kind that is not built here.
        DataError: A file or a weight is missing, or damaged.
    """
    config = read_hugging_face_config(folder)
    where = _find_weights(folder)
    with ExitStack() as stack:
        opened = {path: stack.enter_context(_open(path)) for path in sorted(set(where.values()))}
        for name, path in where.items():
            if name not in opened[path].keys():  # noqa: SIM118 (no mapping)
                raise DataError(
                    f"{name} is not in it, though the index says so",
                    where=path,
                    fix="Download that file again.",
                )
        shapes = {
            name: tuple(opened[path].get_slice(name).get_shape()) for name, path in where.items()
        }
        tied_copy = config.tie_embeddings and _HEAD in shapes
        _check(shapes, config, folder)
        weights = {
            name: opened[where[name]].get_tensor(name)
            for name in [*hugging_face_shapes(config), *([_HEAD] if tied_copy else [])]
        }
    if tied_copy and not torch.equal(weights.pop(_HEAD), weights[_EMBEDDING]):
        raise ConfigError(
            f"{_HEAD} differs from {_EMBEDDING}, but config.json says that they are tied",
            where=folder,
            fix="Set tie_word_embeddings to false in config.json, or leave the head out.",
        )
    return config, from_hugging_face(weights, config)


def _find_weights(folder: Path) -> dict[str, Path]:
    """The file of each weight."""
    index = folder / _INDEX
    if index.is_file():
        try:
            files: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            where = {name: folder / Path(file).name for name, file in files.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"it cannot be read: {error!r}", where=index) from error
        missing = sorted({path.name for path in where.values() if not path.is_file()})
        if missing:
            raise DataError(
                f"of {len(set(where.values()))} shards {len(missing)} are missing: "
                f"{', '.join(missing)}",
                where=folder,
                fix="Download the missing files.",
            )
        return where
    path = folder / _SINGLE
    if not path.is_file():
        raise DataError(
            f"there is neither {_SINGLE} nor {_INDEX}",
            where=folder,
            fix="Weights in other formats (pytorch_model.bin) must be saved as safetensors first.",
        )
    with _open(path) as opened:
        return dict.fromkeys(opened.keys(), path)


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"the weights cannot be read: {error}", where=path, fix="Download that file again."
        ) from error


def _check(found: dict[str, tuple[int, ...]], config: ModelConfig, folder: Path) -> None:
    expected = hugging_face_shapes(config)
    extra = {name for name in found.keys() - expected.keys() if not name.endswith(".inv_freq")}
    if config.tie_embeddings:
        extra.discard(_HEAD)
    biases = sorted(name for name in extra if name.endswith(".bias"))
    if biases:
        raise ConfigError(
            f"the model has biases ({biases[0]} and {len(biases) - 1} more); models here have none",
            where=folder,
            fix="Start from another model.",
        )
    missing = sorted(expected.keys() - found.keys())
    if missing:
        advice = "Download the folder again."
        if missing == [_HEAD]:
            advice = "If the head is the embedding, set tie_word_embeddings in config.json."
        raise DataError(f"weights are missing: {_some(missing)}", where=folder, fix=advice)
    if extra:
        raise ConfigError(
            f"weights that this kind of model does not have: {_some(sorted(extra))}",
            where=folder,
            fix="Start from another model.",
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise DataError(
                f"{name} has shape {found[name]}, by config.json it should be {shape}",
                where=folder,
            )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
