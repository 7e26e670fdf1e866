"""The judge of an analysis: which model it is, and its engine behind a request log."""

from pathlib import Path

from megatron_synth.config import ConfigError
from megatron_synth.engines import (
    Engine,
    EngineConfig,
    RequestLog,
    fingerprint_model,
    read_model_folder,
)
from megatron_synth.engines.logged import LoggedEngine
from megatron_synth.runs import hash_json
from megatron_synth.synthesis.judging import start_judge

JUDGE_LOG = "judge.log"


def judge_identity(config: EngineConfig | None, folder: Path | None) -> str | None:
    """A hash of the model that answers; None where no judge is given.

    Args:
        config: How it is asked; None: vLLM with the folder, where there is one.
        folder: The judge in Hugging Face form; an endpoint needs none.

    Raises:
        ConfigError: The engine needs a folder.
        DataError: The folder holds no model.
    """
    if config is not None and config.kind == "endpoint":
        return hash_json({"url": config.url, "model": config.model, "chat": config.chat})
    if folder is None:
        if config is not None:
            raise ConfigError("this kind of engine needs the judge's folder", where="engine")
        return None
    read_model_folder(folder)
    return fingerprint_model(folder)


def open_judge(
    config: EngineConfig | None, folder: Path | None, log: Path, max_answer_tokens: int
) -> Engine:
    """Start the judge, with a log in which its answers outlive a kill.

    Args:
        config: How it is asked.
        folder: The judge's, where it is no endpoint; one of both is given.
        log: The log's file; one of another judge is refused.
        max_answer_tokens: Longest answer.

    Raises:
        ConfigError, DataError, RunError: See `synthesis.judging.start_judge` and `RequestLog`.
    """
    requests = RequestLog(log, hash_json([judge_identity(config, folder), max_answer_tokens]))
    try:
        engine = start_judge(config, folder)
        if engine is None:
            raise ConfigError("there is no judge", fix="Give --judge, or engine.kind=endpoint.")
    except BaseException:
        requests.close()
        raise
    return LoggedEngine(engine, requests)
