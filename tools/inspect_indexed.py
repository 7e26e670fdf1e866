"""Look into, compare, merge and split Megatron indexed datasets (.bin/.idx).

python tools/inspect_indexed.py show data/wiki --documents 0:3 --tokenizer tokenizer/
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron_synth.config import DataError, MegatronSynthError
from megatron_synth.packing.comparing import compare as compare_datasets
from megatron_synth.packing.inspecting import (
    ShownDocument,
    count_methods,
    facts,
    printable,
)
from megatron_synth.packing.inspecting import show as show_documents
from megatron_synth.packing.inspecting import window as read_window
from megatron_synth.packing.merging import merge as merge_datasets
from megatron_synth.packing.product import Made
from megatron_synth.packing.reader import IndexedReader
from megatron_synth.packing.splitting import split as split_dataset
from megatron_synth.runs import log_to
from megatron_synth.tokens import Tokenizer

_IDS_SHOWN = 64

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=__doc__,
)
Prefix = Annotated[str, typer.Argument(help="Path without .bin, with or without _text_document")]
TokenizerName = Annotated[
    str | None, typer.Option("--tokenizer", help="Folder or name of the tokenizer that packed it")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else")]


@app.command(epilog="Example: inspect_indexed.py show data/wiki --document 7 --tokenizer tok/")
def show(
    prefix: Prefix,
    document: Annotated[int | None, typer.Option(help="Show this document")] = None,
    documents: Annotated[str | None, typer.Option(help="Show documents A to B - 1: A:B")] = None,
    tokenizer: TokenizerName = None,
    as_json: Json = False,
) -> None:
    """Print counts and, where asked for, documents: ids, text, provenance."""
    reader = IndexedReader(prefix)
    head = facts(reader)
    found = []
    wanted = _range(document, documents, reader.documents)
    if wanted is not None:
        found = show_documents(reader, *wanted, _load(tokenizer))
    if as_json:
        _print_json({**head, "shown": [one.as_json() for one in found]})
        return
    for name, value in head.items():
        typer.echo(f"{name:32}{f'{value:,}' if type(value) is int else printable(str(value))}")
    _print_documents(found)


@app.command(epilog="Example: inspect_indexed.py window data/wiki --start 4096 --length 512")
def window(
    prefix: Prefix,
    start: Annotated[int, typer.Option(help="First token, counted over the whole .bin")],
    length: Annotated[int, typer.Option(help="Number of tokens")],
    tokenizer: TokenizerName = None,
    as_json: Json = False,
) -> None:
    """Decode a window and name the documents in it."""
    reader = IndexedReader(prefix)
    text, found = read_window(reader, start, length, _load(tokenizer))
    methods = count_methods(found)
    if as_json:
        shown = [one.as_json() for one in found]
        _print_json({"start": start, "text": text, "methods": methods, "documents": shown})
        return
    if text is not None:
        typer.echo(printable(text))
    typer.echo(", ".join(f"{printable(m)}: {n:,} tokens" for m, n in methods.items()))
    _print_documents(found)


@app.command(epilog="Example: inspect_indexed.py compare data/old data/new; echo $?")
def compare(a: Prefix, b: Prefix, tokenizer: TokenizerName = None, as_json: Json = False) -> None:
    """Say that two datasets are identical, or the first difference; exit status 1 then."""
    result = compare_datasets(IndexedReader(a), IndexedReader(b), _load(tokenizer))
    if as_json:
        _print_json(result.as_json())
    elif result.identical:
        typer.echo("identical")
    else:
        for name, (one, other) in result.facts.items():
            typer.echo(f"{name}: {one} and {other}")
        if result.first is None:
            typer.echo("the documents hold the same")
        else:
            first = result.first
            typer.echo(
                f"first difference: document {first.document}, token {first.token} ({first.what})"
            )
            for name, ids, text in (
                ("A", first.ids_a, first.text_a),
                ("B", first.ids_b, first.text_b),
            ):
                typer.echo(f"  {name} from token {first.start}: {ids}")
                if text is not None:
                    typer.echo(f"    {printable(text)}")
    if not result.identical:
        raise typer.Exit(1)


@app.command(epilog="Example: inspect_indexed.py merge data/a data/b --out data/both")
def merge(
    prefixes: Annotated[list[str], typer.Argument(help="Datasets, in this order")],
    out: Annotated[Path, typer.Option(help="Prefix of the result")],
    as_json: Json = False,
) -> None:
    """Join datasets into one, as Megatron-LM's merge_datasets.py does."""
    made = merge_datasets(prefixes, out)
    if as_json:
        _print_json(made.as_json())
    else:
        _print_made(made)


@app.command(epilog="Example: inspect_indexed.py split data/wiki --parts 4 --out data/quarter")
def split(
    prefix: Prefix,
    out: Annotated[Path, typer.Option(help="Prefix of the results")],
    parts: Annotated[int | None, typer.Option(help="So many parts of nearly equal tokens")] = None,
    tokens: Annotated[int | None, typer.Option(help="Or at most so many tokens in each")] = None,
    tokenizer: TokenizerName = None,
    as_json: Json = False,
) -> None:
    """Cut a dataset at document borders, into OUT-00000-of-00004_text_document.* and so on."""
    made = split_dataset(prefix, out, parts=parts, tokens=tokens, tokenizer=_load(tokenizer))
    if as_json:
        _print_json({"parts": [one.as_json() for one in made]})
    else:
        for one in made:
            _print_made(one)


def main() -> None:
    """Our own errors become one message and an exit status."""
    log_to()
    try:
        app()
    except MegatronSynthError as error:
        typer.echo(f"inspect_indexed: {error}", err=True)
        sys.exit(error.exit_status)


def _range(document: int | None, documents: str | None, count: int) -> tuple[int, int] | None:
    if document is not None:
        return document, document + 1
    if documents is None:
        return None
    try:
        first, last = documents.split(":")
        return int(first or 0), int(last or count)
    except ValueError:
        raise DataError(
            f"{documents!r} is no range", where="--documents", fix="Write A:B, such as 0:3."
        ) from None


def _load(tokenizer: str | None) -> Tokenizer | None:
    return None if tokenizer is None else Tokenizer.load(tokenizer)


def _print_documents(found: list[ShownDocument]) -> None:
    for one in found:
        source = ", ".join(f"{k} {printable(str(v))}" for k, v in (one.provenance or {}).items())
        typer.echo(f"document {one.document} from token {one.offset}, sequences {one.sequences}")
        if source:
            typer.echo(f"  {source}")
        more = f" … {len(one.ids):,} ids" if len(one.ids) > _IDS_SHOWN else ""
        typer.echo(f"  {one.ids[:_IDS_SHOWN]}{more}")
        if one.text is not None:
            typer.echo(f"  {printable(one.text)}")


def _print_made(made: Made) -> None:
    beside = [".json"] * (made.info is not None) + [".provenance.parquet"] * made.provenance
    typer.echo(
        f"{made.stem}: {made.documents:,} documents, {made.tokens:,} tokens, "
        f"beside it: {', '.join(beside) or 'nothing'}"
    )


def _print_json(content: dict[str, Any]) -> None:
    typer.echo(json.dumps(content))


if __name__ == "__main__":
    main()
