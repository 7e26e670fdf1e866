"""vLLM's errors in our words: what is wrong, where, what to do."""

import re
from pathlib import Path

from megatron_synth.config import ConfigError, MegatronSynthError, RunError

_MEMORY = re.compile(
    r"out of memory|not enough memory|can't allocate|cannot allocate memory|bad_alloc"
    r"|available memory|no available memory for the cache|larger than the maximum number of "
    r"tokens that can be stored|kv cache is needed|kv cache memory",
    re.IGNORECASE,
)
_PORT = re.compile(r"EADDRINUSE|address already in use", re.IGNORECASE)
_HEAD = re.compile(r"head.?size", re.IGNORECASE)


def explain(error: BaseException, model: Path, doing: str) -> MegatronSynthError:
    """The error that a person should see for `error`, raised by vLLM while `doing` something."""
    text = " ".join(_messages(error))
    short = text if len(text) <= 400 else f"{text[:400]}…"
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return RunError(
            f"vLLM ran out of memory while {doing}: {short}",
            where=model,
            fix="Lower engine.concurrency or engine.max_model_len, set engine.kv_cache_gb, or "
            "(on a GPU) lower engine.gpu_memory_utilization if something else uses the device.",
        )
    if _PORT.search(text):
        return RunError(
            f"a port that vLLM wanted was taken by another process while {doing}: {short}",
            where=model,
            fix="Run the same command again; if VLLM_PORT or MASTER_PORT is set, unset it.",
        )
    if _HEAD.search(text):
        return ConfigError(
            f"vLLM has no attention kernel for this model's head size here: {short}",
            where=model,
            fix="Use a model with hidden_size / num_attention_heads in 32, 64, 96, 128, …",
        )
    return RunError(f"vLLM failed while {doing}: {type(error).__name__}: {short}", where=model)


def _messages(error: BaseException | None) -> list[str]:
    """Messages of an error and of what caused it, without repetition."""
    found: list[str] = []
    while error is not None:
        text = " ".join(str(error).split())
        if text and text not in found:
            found.append(text)
        error = error.__cause__ or error.__context__
    return found
