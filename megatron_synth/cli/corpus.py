"""Verbs about corpora: import, stats, check; quality and concepts stand in `quality.py`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_synth.cli.answers import Json, print_json
from megatron_synth.cli.products import Made, make_product
from megatron_synth.cli.quality import CONCEPTS_EXAMPLE, QUALITY_EXAMPLE, concepts, quality
from megatron_synth.config import (
    ConfigError,
    DataError,
    apply_overrides,
    parse_config,
    read_yaml,
)

if TYPE_CHECKING:
    from megatron_synth.corpus import CorpusStats
    from megatron_synth.corpus.lengths import Lengths
    from megatron_synth.corpus.stats import BadRows

_WIDTH = 40

app = typer.Typer(no_args_is_help=True, help="Import, count, check and judge documents.")
app.command(epilog=QUALITY_EXAMPLE)(quality)
app.command(epilog=CONCEPTS_EXAMPLE)(concepts)

Input = Annotated[
    str,
    typer.Argument(
        metavar="INPUT",
        help="A file, folder or glob of JSONL (plain, .gz, .zst) or Parquet, or hf://OWNER/NAME",
        show_default=False,
    ),
]
TextColumn = Annotated[str, typer.Option(help="Key of the text in each row")]
IdColumn = Annotated[str, typer.Option(help="Key of the id in each row")]


@app.command(
    "import",
    epilog="Example: megatron-synth corpus import 'web/*.jsonl.gz' --out corpora/web "
    "min_characters=300 'near_duplicates={threshold: 0.8}'",
)
def corpus_import(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="As for stats, or `installed`: this machine's Python documentation",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new corpus", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings, such as min_characters=300", show_default=False),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML with settings (docs/corpus.md)", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Read documents from anywhere; normalise, filter and write them with a manifest."""
    from megatron_synth.corpus import ImportConfig, import_corpus
    from megatron_synth.corpus.importing import products
    from megatron_synth.experiments.source import import_fingerprint
    from megatron_synth.runs import hash_json, shown_progress

    tree = apply_overrides(read_yaml(config) if config else {}, overrides or [])
    if "input" in tree:
        raise ConfigError("`input` is given twice", fix="Give it as the first argument only.")
    settings = parse_config({**tree, "input": source}, ImportConfig, where=str(config or "corpus"))
    dumped = settings.model_dump(mode="json")
    content = import_fingerprint(settings)

    def make() -> Made:
        with shown_progress() as progress:
            counts = import_corpus(settings, out, progress)
        return Made(counts, products(settings))

    counts = make_product(
        out,
        kind="import_corpus",
        key=hash_json({"kind": "import_corpus", "config": dumped, "content": content}),
        config=dumped,
        make=make,
    )
    if as_json:
        print_json({"folder": str(out), **counts})
    else:
        _print_counts(counts)
        typer.echo(f"Corpus: {out}")


@app.command(
    epilog="Example: megatron-synth corpus stats corpora/web/documents.jsonl.zst --near-duplicates"
)
def stats(
    source: Input,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder or hub name; counts tokens too", show_default=False),
    ] = None,
    near_duplicates: Annotated[
        bool, typer.Option("--near-duplicates", help="Look for near-duplicates too")
    ] = False,
    text_column: TextColumn = "text",
    id_column: IdColumn = "id",
    as_json: Json = False,
) -> None:
    """Count documents, characters, bytes, tokens, duplicates, scripts and bad rows."""
    from megatron_synth.corpus import NearDuplicatesConfig, corpus_stats
    from megatron_synth.runs import shown_progress
    from megatron_synth.tokens import Tokenizer

    with shown_progress() as progress:
        found = corpus_stats(
            source,
            tokenizer=Tokenizer.load(tokenizer) if tokenizer else None,
            near_duplicates=NearDuplicatesConfig() if near_duplicates else None,
            text_column=text_column,
            id_column=id_column,
            progress=progress,
        )
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        typer.echo("\n".join(_stats_lines(found)))


@app.command(
    epilog="Example: megatron-synth corpus check 'web/*.jsonl.gz' --limit 0.001 --list bad.jsonl"
)
def check(
    source: Input,
    limit: Annotated[float, typer.Option(min=0, max=1, help="Share of bad rows allowed")] = 0.01,
    list_file: Annotated[
        Path | None,
        typer.Option("--list", help="Write every bad row to this file", show_default=False),
    ] = None,
    text_column: TextColumn = "text",
    id_column: IdColumn = "id",
    as_json: Json = False,
) -> None:
    """Say of every row whether it is a document; exit status 2 where too many are not."""
    from megatron_synth.corpus import check_corpus
    from megatron_synth.runs import shown_progress

    with shown_progress() as progress:
        found = check_corpus(
            source,
            limit=limit,
            list_file=list_file,
            text_column=text_column,
            id_column=id_column,
            progress=progress,
        )
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        typer.echo(f"{found.documents:,} of {found.rows:,} rows are documents")
        typer.echo("\n".join(_bad_lines(found.bad_rows)), nl=bool(found.bad_rows))
    if not found.passed:
        listed = f"They are listed in {list_file}." if list_file else "--list FILE lists them."
        raise DataError(
            f"{found.bad:,} of {found.rows:,} rows are no documents ({found.bad_share:.2%}); the "
            f"limit is {limit:.2%}",
            where=source,
            fix=f"Mend or remove these rows, or raise --limit. {listed}",
        )


def _print_counts(counts: dict[str, Any]) -> None:
    for name, value in counts.items():
        if isinstance(value, dict):
            inner = ", ".join(f"{why} {number:,}" for why, number in value.items() if number)
            if inner:
                typer.echo(f"{name.replace('_', ' '):20} {inner}")
        elif value or name in ("rows", "documents"):
            typer.echo(f"{name.replace('_', ' '):20} {value:,}")


def _stats_lines(found: "CorpusStats") -> list[str]:
    lines = [f"documents {found.documents:,}; bad rows {found.bad:,}"]
    lines += _bad_lines(found.bad_rows)
    lines.append(f"exact duplicates {found.duplicates:,}")
    if found.near_duplicates is not None:
        lines.append(f"near-duplicates {found.near_duplicates:,}")
    shares = (f"{name} {share:.1%}" for name, share in found.scripts.items() if share >= 0.001)
    lines.append(f"letters by script: {', '.join(shares) or 'none'}")
    for unit in ("characters", "bytes", "tokens"):
        lengths: Lengths | None = getattr(found, unit)
        if lengths is not None:
            percentiles = ", ".join(f"{q}% {v:,}" for q, v in lengths.percentiles.items())
            lines.append(
                f"{unit} {lengths.total:,}; a document has {lengths.mean:,.0f} on average, "
                f"{lengths.min:,} to {lengths.max:,} ({percentiles})"
            )
    lengths = found.tokens or found.characters
    most = max(lengths.histogram.values(), default=1)
    lines.append(f"documents by {'tokens' if found.tokens else 'characters'}:")
    for name, number in lengths.histogram.items():
        lines.append(f"{name:>20} {number:>12,} {'█' * round(_WIDTH * number / most)}".rstrip())
    return lines


def _bad_lines(bad_rows: "tuple[BadRows, ...]") -> list[str]:
    return [f"  {bad.rows:,} × {bad.reason}: {', '.join(bad.first)}" for bad in bad_rows]
