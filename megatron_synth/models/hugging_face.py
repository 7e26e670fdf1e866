"""Megatron-Core weights as a Hugging Face folder."""

import os
import shutil
from pathlib import Path

import torch

from megatron_synth.config import ConfigError, DataError, RunError
from megatron_synth.models.config import ModelConfig
from megatron_synth.models.hugging_face_config import hugging_face_config
from megatron_synth.models.hugging_face_weights import to_hugging_face
from megatron_synth.runs import fsync_folder, write_json
from megatron_synth.runs.atomic import disk_errors
from megatron_synth.tokens import Tokenizer

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def write_hugging_face(
    weights: dict[str, torch.Tensor],
    config: ModelConfig,
    tokenizer_folder: Path,
    out: Path,
    *,
    max_positions: int,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write config.json, generation_config.json, the weights and the tokenizer's files.

    Args:
        weights: `state_dict()` of the whole model on one rank.
        config: The model.
        tokenizer_folder: A Hugging Face tokenizer; its files are copied.
        out: Folder to write; made if missing. Existing files of these names are replaced.
        max_positions: `max_position_embeddings`: the longest sequence that users may feed.
        max_shard_bytes: Weights of more bytes are written as several safetensors files with an
            index, as transformers does; of fewer as model.safetensors.

    Raises:
        ConfigError: The model has no Hugging Face form, or the tokenizer more ids than the model.
        DataError: There is no tokenizer in that folder, or it is damaged.
        RunError: The weights could not be written (a full disk).
    """
    eos_id, bos_id, tokenizer_size = _read_tokenizer(tokenizer_folder)
    if tokenizer_size > config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer_size} ids, the model only {config.vocab_size}",
            where=tokenizer_folder,
            fix="Give the tokenizer that the model was trained with.",
        )
    described = hugging_face_config(config, max_positions=max_positions)
    dtype = next(iter(weights.values())).dtype
    described |= {
        "torch_dtype": str(dtype).removeprefix("torch."),
        "eos_token_id": eos_id,
        "bos_token_id": bos_id,
    }
    converted = to_hugging_face(weights, config)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").unlink(missing_ok=True)  # until the end this is no whole folder
        for name in _TOKENIZER_FILES:
            if (tokenizer_folder / name).is_file():
                shutil.copyfile(tokenizer_folder / name, out / name)
        for old in out.glob("model*.safetensors*"):
            old.unlink()
    _save_shards(converted, out, max_shard_bytes)
    write_json(out / "generation_config.json", {"eos_token_id": eos_id, "bos_token_id": bos_id})
    write_json(out / "config.json", described)  # last: its presence marks the folder as whole


def _save_shards(weights: dict[str, torch.Tensor], out: Path, max_bytes: int) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(weights, max_shard_size=max_bytes)
    for file, names in split.filename_to_tensors.items():
        _save_weights({name: weights[name] for name in names}, out / file)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(out / "model.safetensors.index.json", index)


def _save_weights(weights: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with disk_errors(path):
            save_file(weights, temporary, metadata={"format": "pt"})
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
            fsync_folder(path.parent)
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"the weights could not be written: {error}",
            where=path,
            fix="Make room on that disk and run the same command again.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _read_tokenizer(folder: Path) -> tuple[int, int | None, int]:
    """End-of-text id, begin-of-text id (None where there is none) and the number of ids."""
    if not folder.is_dir():  # a name must not be looked up on the hub
        raise DataError(
            "no such folder",
            where=folder,
            fix="Give a folder that holds a Hugging Face tokenizer.",
        )
    tokenizer = Tokenizer.load(folder)
    return tokenizer.eos_id, tokenizer.bos_id, tokenizer.vocab_size
