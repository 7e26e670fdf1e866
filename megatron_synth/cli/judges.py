"""A judge for a verb: which one it is, and its engine behind a request log."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from megatron_synth.engines import Engine, EngineConfig

Judge = Annotated[
    Path | None,
    typer.Option(
        help="The judge's folder in Hugging Face form; or set engine.kind=endpoint",
        show_default=False,
    ),
]


def judge_identity(config: "EngineConfig | None", folder: Path | None) -> str | None:
    """A hash of the model that answers; None where no judge is given.

    Raises:
        DataError: The folder holds no model.
    """
    from megatron_synth.engines import fingerprint_model, read_model_folder
    from megatron_synth.runs import hash_json

    if config is not None and config.kind == "endpoint":
        return hash_json({"url": config.url, "model": config.model, "chat": config.chat})
    if folder is None:
        return None
    read_model_folder(folder)
    return fingerprint_model(folder)


def open_judge(config: "EngineConfig | None", folder: Path | None, log: Path, run: str) -> "Engine":
    """Start the judge, with a log in which its answers outlive a kill.

    Args:
        config: How it is asked.
        folder: The judge's, where it is no endpoint; one of both is given.
        log: The log's file.
        run: Names what the answers depend on.

    Raises:
        ConfigError, DataError, RunError: See `synthesis.judging.start_judge` and `RequestLog`.
    """
    from megatron_synth.config import ConfigError
    from megatron_synth.engines import RequestLog
    from megatron_synth.engines.logged import LoggedEngine
    from megatron_synth.synthesis.judging import start_judge

    requests = RequestLog(log, run)
    try:
        engine = start_judge(config, folder)
        if engine is None:
            raise ConfigError("there is no judge", fix="Give --judge, or engine.kind=endpoint.")
    except BaseException:
        requests.close()
        raise
    return LoggedEngine(engine, requests)
