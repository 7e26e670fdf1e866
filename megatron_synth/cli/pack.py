"""The verb `pack`: documents to Megatron's indexed datasets."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Annotated

import typer

from megatron_synth.cli.answers import Json, print_json
from megatron_synth.cli.products import Made, make_product
from megatron_synth.config import ConfigError, apply_overrides, parse_config, read_yaml

_NAME = re.compile(r"\w[\w.-]*")

EXAMPLE = (
    "Example: megatron-synth pack corpora/web/documents.jsonl.zst --tokenizer tokenizers/mine "
    "--out packed/web special_tokens=reject"
)


def pack(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A file, folder or glob of JSONL (plain, .gz, .zst) or Parquet",
            show_default=False,
        ),
    ],
    tokenizer: Annotated[
        str,
        typer.Option(
            help="Folder or hub name of a Hugging Face tokenizer, a SentencePiece .model or a "
            ".tiktoken file",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the packed corpus", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings, such as special_tokens=reject", show_default=False),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML with settings (docs/packing.md)", show_default=False)
    ] = None,
    name: Annotated[str, typer.Option(help="The files are called NAME_text_document")] = "corpus",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one a core", show_default=False)
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(help="auto (gigatoken where it is proven right), gigatoken or tokenizer"),
    ] = "auto",
    as_json: Json = False,
) -> None:
    """Tokenize documents and write .bin and .idx, which Megatron reads, with a manifest."""
    from megatron_synth.experiments.source import fingerprint
    from megatron_synth.packing import PackConfig, pack
    from megatron_synth.runs import hash_json, shown_progress
    from megatron_synth.tokens import Tokenizer

    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"--name is {name!r}", fix="Letters, digits, dots, dashes and underscores, please."
        )
    tree = apply_overrides(read_yaml(config) if config else {}, overrides or [])
    settings = parse_config(tree, PackConfig, where=str(config or "pack"))
    dumped = {**settings.model_dump(mode="json"), "name": name}
    loaded = Tokenizer.load(tokenizer)
    content = {"input": fingerprint(source), "tokenizer": loaded.fingerprint}

    def make() -> Made:
        with shown_progress() as progress:
            packed = pack(
                source,
                loaded,
                out / name,
                progress,
                settings,
                workers=workers or len(os.sched_getaffinity(0)),
                encoder=encoder,
            )
        endings = ["bin", "idx", "json", *(["provenance.parquet"] if settings.provenance else [])]
        files = [f"{stem}.{ending}" for stem in packed.infos for ending in endings]
        if packed.quarantined + packed.rejected:
            files.append(f"{name}.quarantine.jsonl")
        return Made(dataclasses.asdict(packed), files, loaded.fingerprint)

    counts = make_product(
        out,
        kind="pack",
        key=hash_json({"kind": "pack", "config": dumped, **content}),
        config={**dumped, "input": source},
        make=make,
    )
    if as_json:
        print_json({"folder": str(out), **counts})
        return
    for stem, info in counts["infos"].items():
        typer.echo(
            f"{out / stem}: {info['documents']:,} documents, {info['tokens']:,} tokens, "
            f"{info['dtype']}"
        )
    typer.echo(
        f"{counts['rows']:,} rows, {counts['quarantined']:,} quarantined, "
        f"{counts['rejected']:,} rejected; encoder: {counts['encoder']}"
    )
