"""The verb `mideval`: is a small synthesis run good enough for a large one?"""

from pathlib import Path
from typing import Annotated

import typer

from megatron_synth.cli.answers import Json, print_json
from megatron_synth.config import apply_overrides, parse_config, read_yaml

EXAMPLE = (
    "Example: megatron-synth mideval corpora/web_sbp --documents corpora/web --judge "
    "models/Qwen3-4B-Instruct max_repetition=0.05 max_irrelevant=0.3"
)


def mideval(
    synthetic: Annotated[
        str,
        typer.Argument(help="The synthetic documents: a file, folder or glob", show_default=False),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings and limits, such as samples=500", show_default=False),
    ] = None,
    documents: Annotated[
        str | None,
        typer.Option(help="The documents that they were made from", show_default=False),
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option(
            help="The judge's folder in Hugging Face form; or set engine.kind=endpoint",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML with settings (docs/mideval.md)", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Repetition, near-duplicates and copies by rules; relevance and factuality by a judge model.

    Exit status 1 where a figure is over its limit: a script can stop there.
    """
    from megatron_synth.runs import shown_progress
    from megatron_synth.synthesis.judges import start_judge
    from megatron_synth.synthesis.mideval import MidevalConfig
    from megatron_synth.synthesis.mideval import mideval as measure

    tree = apply_overrides(read_yaml(config) if config else {}, overrides or [])
    settings = parse_config(tree, MidevalConfig, where=str(config or "mideval"))
    with shown_progress() as progress:
        engine = start_judge(settings.engine, judge)
        try:
            figures = measure(settings, synthetic, documents, engine, progress)
        finally:
            if engine is not None:
                engine.close()
    if as_json:
        print_json(figures)
        return
    for name, value in figures.items():
        shown = "not measured" if value is None else value
        typer.echo(f"{name}: {f'{value:.1%}' if isinstance(value, float) else shown}")
