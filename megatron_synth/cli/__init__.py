"""`megatron-synth VERB`: thin. Exit status: 0 done, 1 failed while running, 2 wrong input.

One file for each group of verbs; a verb imports the room that it calls inside its function, so
that `--help` costs nothing. Answers go to stdout, log and progress to stderr.
"""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import typer

from megatron_synth.cli import (
    blend,
    convert,
    corpus,
    experiments,
    launch,
    mideval,
    models,
    pack,
    pair,
    synthesize,
    train,
)
from megatron_synth.config import MegatronSynthError
from megatron_synth.runs import log_to

_INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="More effective pretraining tokens from a fixed corpus, on Megatron-Core.",
)
app.add_typer(experiments.app)
app.add_typer(corpus.app, name="corpus")
app.command(epilog=synthesize.EXAMPLE)(synthesize.synthesize)
app.command(epilog=mideval.EXAMPLE)(mideval.mideval)
app.command(epilog=pair.EXAMPLE)(pair.pair)
app.command(epilog=pack.EXAMPLE)(pack.pack)
app.add_typer(blend.app, name="blend")
app.command(epilog=train.EXAMPLE)(train.train)
app.command(epilog=convert.EXAMPLE)(convert.convert)
app.add_typer(models.app, name="models")
app.add_typer(launch.app, name="launch")


@contextlib.contextmanager
def _terminated_like_ctrl_c() -> Iterator[None]:
    def interrupt(number: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(run_app: Callable[[], Any] = app) -> None:
    """Entry point: our own errors become one message and an exit status."""
    log_to()
    try:
        with _terminated_like_ctrl_c():
            run_app()
    except MegatronSynthError as error:
        typer.echo(f"megatron-synth: {error}", err=True)
        sys.exit(error.exit_status)
    except SystemExit as leaving:
        if leaving.code == _INTERRUPTED:  # Typer turns Ctrl-C into this, without a word
            typer.echo("megatron-synth: stopped; run the same command again to go on", err=True)
        raise
