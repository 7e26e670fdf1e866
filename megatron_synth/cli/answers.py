"""What the verbs share: common options and how answers are printed."""

import json
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else")]


def print_json(content: Any) -> None:
    """Print one JSON object, and nothing that JSON cannot hold."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # the name of a file may hold what is no Unicode: JSON can escape it
        text = json.dumps(content, allow_nan=False)
    typer.echo(text)
