"""A judge: which model it is, its engine, and that engine behind a request log."""

from pathlib import Path

from megatron_synth.config import ConfigError
from megatron_synth.engines import (
    Engine,
    EngineConfig,
    RequestLog,
    VllmConfig,
    fingerprint_model,
    make_engine,
    read_chat_form,
    read_model_folder,
)
from megatron_synth.engines.logged import LoggedEngine
from megatron_synth.runs import hash_json
from megatron_synth.synthesis.methods.sbp import banned_ids
from megatron_synth.tokens import Tokenizer

JUDGE_LOG = "judge.log"


def judge_identity(config: EngineConfig | None, folder: Path | None) -> str | None:
    """A hash of all that a judge's answers depend on, wherever it lies; None without a judge.

    Args:
        config: How it is asked; None: vLLM with the folder, where there is one.
        folder: The judge in Hugging Face form; an endpoint needs none, and is known by its
            model's name.

    Raises:
        ConfigError: The engine needs a folder, or its chat template cannot be used.
        DataError: The folder holds no model.
    """
    settings = config or VllmConfig()
    if settings.kind == "endpoint":
        return hash_json(
            {"model": settings.model, "chat": settings.chat, "system_role": settings.system_role}
        )
    if folder is None:
        if config is not None:
            raise _no_folder()
        return None
    read_model_folder(folder)
    tokenizer = Tokenizer.load(folder)
    form = read_chat_form(folder, tokenizer, settings.chat, settings.chat_options)
    return fingerprint_model(
        folder,
        tokenizer=tokenizer.fingerprint,
        chat=form.fingerprint if form else None,
        max_model_len=settings.max_model_len,  # decides which questions are too long
    )


def start_judge(config: EngineConfig | None, model_folder: Path | None) -> Engine | None:
    """The judge's engine; None where neither a folder nor an endpoint is given.

    Args:
        config: How it is asked; None: vLLM.
        model_folder: The judge in Hugging Face form.

    Raises:
        ConfigError, DataError, RunError: See `engines.make_engine`.
    """
    settings = config or VllmConfig()
    if settings.kind == "endpoint":
        return make_engine(settings, None)
    if model_folder is None:
        if config is not None:
            raise _no_folder()
        return None
    tokenizer = Tokenizer.load(model_folder)
    banned = banned_ids(tokenizer, read_model_folder(model_folder).vocab_size)
    return make_engine(settings, model_folder, tokenizer, banned)


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
        ConfigError, DataError, RunError: See `start_judge` and `RequestLog`.
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


def _no_folder() -> ConfigError:
    return ConfigError("this kind of engine needs the judge's folder", where="engine")
