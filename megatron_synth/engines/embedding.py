"""Documents to vectors: the mean-pooled activations of a language model's own middle layer.

SBP embeds documents with an encoder of its own (Qwen3-Embedding, appendix A.2) and names the
pretrained model's activations as the ideal (section 7); that is what this file computes, from any
local Hugging Face folder, with plain transformers.

Two things make raw activations poor vectors, and both are dealt with here:
- The first position of a trained language model often carries activations hundreds of times
  larger than the rest (Sun et al. 2024, Massive Activations in Large Language Models). A separator
  is put before every document, as in training, and left out of the mean.
- Mean-pooled states share one large direction (anisotropy: Ethayarajh 2019; Mu and Viswanath
  2018): two unrelated documents have a cosine near 0.9, and a threshold separates nothing.
  `center: true` subtracts the corpus mean before the vectors get unit norm.

Cost: one forward pass of the lower half of the model; batches hold documents of like length.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from megatron_synth.config import Config, ConfigError, Count, DataError, RunError
from megatron_synth.runs import Progress, atomic_write, get_logger, hash_file, hash_json

if TYPE_CHECKING:
    import torch

_log = get_logger(__name__)
_SHARDS = ".shards"
_EPSILON = 1e-6


class EmbedConfig(Config):
    """How documents become vectors."""

    layer: int | None = Field(default=None, ge=1)
    """Activations after this many layers; by default half of them."""
    center: bool = True
    """Subtract the corpus mean before unit norm; see the top of `engines/embedding.py`."""
    batch_tokens: Count = Field(default=16_384, ge=1)
    """Padded tokens in one forward pass: bounds the memory."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longer documents are cut here (and counted); by default at the model's context length."""
    shard_documents: int = Field(default=4096, ge=1)
    """Documents finished at a time: a killed step loses at most this many."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPU if there is one. CPU: float32; CUDA: bfloat16."""


def embed_documents(
    config: EmbedConfig, documents: Path, model_folder: Path, out: Path, progress: Progress
) -> dict[str, Any]:
    """Embed a documents file with a model whose folder also holds its tokenizer.

    Args:
        config: See `EmbedConfig`.
        documents: A file that `corpus.read_documents` reads.
        model_folder: Hugging Face folder: config.json, weights, tokenizer.
        out: Folder for `embeddings.npy` and `ids.parquet`; see `embed_tokens`.
        progress: Counts documents.

    Returns:
        See `embed_tokens`.

    Raises:
        DataError: No documents, or no model there.
        ConfigError: A layer that the model does not have.
    """
    from megatron_synth.corpus import read_documents
    from megatron_synth.tokens import Tokenizer

    _check_folder(model_folder)
    tokenizer = Tokenizer.load(model_folder)
    progress.phase("tokenizing")
    ids, texts = [], []
    for document in read_documents(documents):
        ids.append(document.id)
        texts.append(document.text)
    prefix = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    tokens = tokenizer.encode_batch(texts)
    return embed_tokens(config, ids, tokens, model_folder, out, progress, prefix=prefix)


def embed_tokens(
    config: EmbedConfig,
    ids: Sequence[str],
    tokens: Sequence[Sequence[int]],
    model_folder: Path,
    out: Path,
    progress: Progress,
    *,
    prefix: int | None = None,
) -> dict[str, Any]:
    """Embed documents given as token ids.

    Writes `out/embeddings.npy`, float16 [n, d], rows of unit norm in the order given (a row of
    zeros for a document without tokens), and `out/ids.parquet`, column `id`. Each finished shard
    is kept under a name that holds the hash of all it depends on, so a rerun after a kill goes on
    from there and gives the same file, whatever lay in `out` before.

    Args:
        config: See `EmbedConfig`.
        ids: Document ids, n of them.
        tokens: Token ids of each document, without separators.
        model_folder: Hugging Face folder: config.json and weights.
        out: Folder to write to; made if it is not there.
        progress: Counts documents.
        prefix: Separator id to put before every document and leave out of the mean.

    Returns:
        Counts: `documents`, `dimension`, `layer`, `truncated`, `without_tokens`, `tokens`, and
        `common_share`: the share of the mean squared norm that lies in the corpus mean.

    Raises:
        DataError: No documents; fewer than two to centre; no model there.
        ConfigError: A layer that the model does not have, or CUDA where there is none.
        RunError: The model gives activations that are not finite.
    """
    if len(ids) != len(tokens):
        raise DataError(f"{len(ids)} ids for {len(tokens)} documents")
    if len(ids) < (2 if config.center else 1):
        raise DataError(
            f"{len(ids)} documents are too few to embed" + (" and centre" if config.center else ""),
            fix="Check the input file.",
        )
    _check_folder(model_folder)
    out.mkdir(parents=True, exist_ok=True)
    shards = out / _SHARDS
    shards.mkdir(exist_ok=True)
    encoder = _Encoder(config, model_folder, prefix)
    cut = [list(document[: encoder.max_tokens]) for document in tokens]
    progress.phase("embedding", total=len(cut), unit="documents")
    parts = []
    for start in range(0, len(cut), config.shard_documents):
        part = cut[start : start + config.shard_documents]
        path = shards / f"{start:012d}-{hash_json([encoder.key, part])[:16]}.npy"
        if not path.is_file():
            vectors = encoder.encode(part, lambda n, at=start: progress.update(at + n))  # type: ignore[misc]
            with atomic_write(path, "wb") as handle:
                np.save(handle, vectors)
        parts.append(path)
        progress.update(start + len(part))
    common = _write_unit_vectors(out / "embeddings.npy", parts, config.center)
    _write_ids(out / "ids.parquet", ids)
    shutil.rmtree(shards)
    counts = {
        "documents": len(cut),
        "dimension": encoder.dimension,
        "layer": encoder.layer,
        "tokens": sum(map(len, cut)),
        "truncated": sum(len(document) > encoder.max_tokens for document in tokens),
        "without_tokens": sum(not document for document in cut),
        "common_share": round(common, 4),
    }
    _log.info("embedded %s", counts)
    return counts


class _Encoder:
    """A model cut at the layer that is read."""

    def __init__(self, config: EmbedConfig, folder: Path, prefix: int | None) -> None:
        import torch
        from transformers import AutoModel

        if config.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device is cuda, but torch sees no GPU", fix="Use device: auto.")
        self.device = (
            ("cuda" if torch.cuda.is_available() else "cpu")
            if config.device == "auto"
            else config.device
        )
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        try:
            with _quiet():
                model = AutoModel.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False, dtype=dtype
                )
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"cannot load the model: {error}", where=folder) from error
        settings = model.config
        layers = int(settings.num_hidden_layers)
        self.layer = max(1, layers // 2) if config.layer is None else config.layer
        if self.layer > layers:
            raise ConfigError(f"layer {self.layer} asked for, but the model has {layers}")
        room = int(getattr(settings, "max_position_embeddings", 0) or 1 << 30)
        self.max_tokens = min(room - (prefix is not None), config.max_tokens or room)
        self.dimension = int(settings.hidden_size)
        self.batch_tokens = config.batch_tokens
        self.prefix = prefix
        self.vocabulary = int(settings.vocab_size)
        self._cut = _cut_at(model, self.layer)
        self._model = model.to(self.device).eval()
        self.key = [hash_model(folder), self.layer, prefix, self.max_tokens, self.device]

    def encode(self, documents: Sequence[Sequence[int]], done: Any) -> NDArray[np.float32]:
        """Mean activations, float32 [documents, dimension]; zeros for a document without tokens.

        `done` is called with the number of documents finished.
        """
        import torch

        vectors = np.zeros((len(documents), self.dimension), np.float32)
        finished = 0
        lead = [] if self.prefix is None else [self.prefix]
        for batch in _batches([len(d) + len(lead) for d in documents], self.batch_tokens):
            rows = [lead + list(documents[i]) for i in batch]
            longest = max(map(len, rows))
            tokens = torch.zeros(len(rows), longest, dtype=torch.long)
            mask = torch.zeros(len(rows), longest, dtype=torch.long)
            for i, row in enumerate(rows):
                tokens[i, : len(row)] = torch.tensor(row, dtype=torch.long)
                mask[i, : len(row)] = 1
            if int(tokens.max()) >= self.vocabulary:
                raise DataError(
                    f"token id {int(tokens.max())} is outside the model's vocabulary of "
                    f"{self.vocabulary}",
                    fix="Tokenize with the tokenizer that the model was trained with.",
                )
            hidden = self._hidden(tokens.to(self.device), mask.to(self.device))
            weight = mask.to(self.device, torch.float32)
            weight[:, : len(lead)] = 0
            total = torch.einsum("bsd,bs->bd", hidden.float(), weight)
            mean = total / weight.sum(1, keepdim=True).clamp_min(1)
            if not torch.isfinite(mean).all():
                raise RunError("the model gives activations that are not finite")
            vectors[batch] = mean.cpu().numpy()
            finished += len(batch)
            done(finished)
        return vectors

    def _hidden(self, tokens: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
        """Activations after `layer` layers, [batch, sequence, dimension]."""
        import torch

        with torch.inference_mode():
            answer = self._model(
                input_ids=tokens,
                attention_mask=mask,
                output_hidden_states=not self._cut,
                **({"use_cache": False} if self._cut else {}),
            )
        result: torch.Tensor = (
            answer.last_hidden_state if self._cut else answer.hidden_states[self.layer]
        )
        return result


@contextmanager
def _quiet() -> Iterator[None]:
    """Load without a progress bar, and without a warning about the output head left out."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _cut_at(model: Any, layer: int) -> bool:
    """Drop the layers above `layer` and the final norm, where the model has the usual shape.

    The decoders that this project trains and serves (Llama, Qwen3, OLMo2, OLMoE) keep a list
    `layers` and a `norm`; half the layers is half the time and memory. False: not that shape.
    """
    import torch

    layers, norm = getattr(model, "layers", None), getattr(model, "norm", None)
    if not isinstance(layers, torch.nn.ModuleList) or not isinstance(norm, torch.nn.Module):
        return False
    model.layers = layers[:layer]
    model.norm = torch.nn.Identity()
    return True


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices by falling length, each batch at most `batch_tokens` when padded (or one document).

    The longest come first, so that a shard too large for the memory fails at once.
    """
    order = sorted((i for i in range(len(lengths)) if lengths[i]), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _write_unit_vectors(path: Path, parts: Sequence[Path], center: bool) -> float:
    """Join shards, centre, normalise, write float16; returns the share of the common direction."""
    documents, total, squares = 0, np.zeros(0), 0.0
    for part in parts:
        vectors = np.load(part).astype(np.float64)
        present = np.any(vectors, axis=1)  # a document without tokens has no say in the mean
        total = vectors.sum(0) if not len(total) else total + vectors.sum(0)
        squares += float((vectors * vectors).sum())
        documents += int(present.sum())
    mean = total / max(documents, 1)
    common = documents * float(mean @ mean) / squares if squares > 0 else 0.0
    blocks = []
    for part in parts:
        vectors = np.load(part).astype(np.float64)
        empty = ~np.any(vectors, axis=1)
        size = np.linalg.norm(vectors, axis=1, keepdims=True)
        if center:
            vectors = vectors - mean
        norm = np.linalg.norm(vectors, axis=1, keepdims=True)
        # What is left of a document that equals the mean is rounding: no direction at all.
        keep = (norm > _EPSILON * np.maximum(size, 1e-30)) & ~empty[:, None]
        blocks.append(np.where(keep, vectors / np.maximum(norm, 1e-30), 0).astype(np.float16))
    with atomic_write(path, "wb") as handle:
        np.save(handle, np.concatenate(blocks))
    return common


def _write_ids(path: Path, ids: Iterable[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_write(path, "wb") as handle:
        pq.write_table(pa.table({"id": pa.array(list(ids), pa.string())}), handle)


def hash_model(folder: Path) -> str:
    """Hash of a model folder's settings and weights."""
    files = sorted([*folder.glob("config.json"), *folder.glob("*.safetensors")])
    return hash_json({path.name: hash_file(path) for path in files})


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise DataError(
            "no config.json: not a Hugging Face model folder",
            where=folder,
            fix="Export the checkpoint to Hugging Face form first.",
        )
