"""The verb `convert`: a checkpoint to Hugging Face, and back."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_synth.cli.answers import Json, print_json
from megatron_synth.config import ConfigError

EXAMPLE = (
    "Example: megatron-synth convert runs/repeat/checkpoints/step_00010000 "
    "--tokenizer tokenizers/mine --out hf/repeat"
)


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint (step_XXXXXXXX), or a Hugging Face folder", show_default=False
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="The Hugging Face folder; or the folder for step_00000000", show_default=False
        ),
    ],
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="To Hugging Face: the tokenizer's folder, which goes along", show_default=False
        ),
    ] = None,
    max_positions: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="To Hugging Face: longest sequence to serve; by default the training's",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a checkpoint as a Hugging Face folder, or a Hugging Face folder as a checkpoint.

    The checkpoint that comes from Hugging Face holds weights alone: runs can start from it
    (init_from). `train` takes the Hugging Face folder itself as well.
    """
    from megatron_synth.training import export_hugging_face, import_hugging_face
    from megatron_synth.training.starting import is_hugging_face

    if is_hugging_face(source):
        if tokenizer is not None or max_positions is not None:
            raise ConfigError(
                "--tokenizer and --max-positions are for the way to Hugging Face", where=source
            )
        made = import_hugging_face(source, out)
    else:
        if tokenizer is None:
            raise ConfigError(
                "the way to Hugging Face needs the tokenizer",
                where="--tokenizer",
                fix="Give the folder of the tokenizer that the model was trained with.",
            )
        export_hugging_face(source, tokenizer, out, max_positions=max_positions)
        made = out
    if as_json:
        print_json({"from": str(source), "to": str(made)})
    else:
        typer.echo(made)
