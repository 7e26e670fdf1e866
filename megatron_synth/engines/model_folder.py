"""What can be known of a Hugging Face model folder without loading the model."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_synth.config import DataError
from megatron_synth.runs import hash_file_once, hash_json

_WEIGHTS = ("*.safetensors",)
_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk.

    Attributes:
        path: The folder.
        context: Largest number of tokens, prompt and answer together.
        vocab_size: Rows of the output head; may be more than the tokenizer has.
        dtype: Of the stored weights: `float32`, `bfloat16`, `float16`.
        head_size: Width of an attention head.
        cache_bytes_per_token: Of keys and values over all layers.
    """

    path: Path
    context: int
    vocab_size: int
    dtype: str
    head_size: int
    cache_bytes_per_token: int


def read_model_folder(path: Path) -> ModelFolder:
    """Read `config.json` of a folder in Hugging Face form.

    Raises:
        DataError: No such folder, no weights in it, or a config without the sizes.
    """
    config_path = path / "config.json"
    if not config_path.is_file():
        raise DataError(
            "no model there: config.json is missing" if path.is_dir() else "no such folder",
            where=path,
            fix="Give the folder of a model in Hugging Face form, such as the export of a "
            "checkpoint.",
        )
    if not _weight_files(path):
        raise DataError("config.json is there, but no *.safetensors weights", where=path)
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        text = {**config, **config.get("text_config", {})}
        head_size = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        kv_heads = text.get("num_key_value_heads") or text["num_attention_heads"]
        dtype = str(text.get("dtype") or text.get("torch_dtype") or "bfloat16")
        width = 2 * int(text["num_hidden_layers"]) * int(kv_heads) * int(head_size)
        return ModelFolder(
            path=path,
            context=int(text["max_position_embeddings"]),
            vocab_size=int(text["vocab_size"]),
            dtype=dtype.removeprefix("torch."),
            head_size=int(head_size),
            cache_bytes_per_token=width * _DTYPE_BYTES.get(dtype.removeprefix("torch."), 2),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"not a usable model config: {type(error).__name__}: {error}", where=config_path
        ) from error


def fingerprint_model(path: Path, **more: Any) -> str:
    """Hash of a model's config and weights, and of `more` that its answers depend on.

    Weights that did not change since they were hashed last are not read again.
    """
    files = [path / "config.json", *_weight_files(path)]
    return hash_json({"files": {f.name: hash_file_once(f) for f in files}, **more})


def _weight_files(path: Path) -> list[Path]:
    return sorted(found for pattern in _WEIGHTS for found in path.glob(pattern))
