"""How vLLM runs, inside this process or as a server: one set of settings, one way to read them."""

import os
from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field

from megatron_synth.config import Config, ConfigError
from megatron_synth.engines.model_folder import ModelFolder

_GIB = 1 << 30
_CPU_BLOCK = 128  # tokens in a block of vLLM's cache on a CPU
_CPU_CACHE_SHARE = 0.3  # of the memory that is free now, at most
WAIT_POLICY = "passive"
"""For OMP_WAIT_POLICY: threads that wait for each other sleep instead of spinning. Beside other
work on the same two cores this was 10 to 20 times faster (1,400 tokens/s against 70)."""
_LOOKUP = (2, 4)  # shortest and longest run of tokens that is looked up before a guess
_MENDED = "megatron_synth.engines.cpu_speculation.MendedSpeculation"  # by name: see there
_CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


class VllmSettings(Config):
    """What vLLM is told. The defaults suit both a small CPU and a GPU."""

    kind: str = ""
    """Which engine these settings are for."""
    chat: bool | None = None
    """Text prompts go as one user message in the form of the model's chat template. Not set:
    where the model folder has a template. False: as they are. Token ids always go as they are."""
    chat_options: dict[str, Any] = {}
    """Switches of the model's chat template, such as `{enable_thinking: false}` for Qwen3."""
    concurrency: int = Field(default=64, ge=1)
    """Requests that are worked on at once."""
    max_model_len: int | None = Field(default=None, ge=2)
    """Context in tokens; the model's own where not set."""
    dtype: str | None = None
    """`float32`, `bfloat16` or `float16`; the stored weights' type where not set."""
    kv_cache_gb: float | None = Field(default=None, gt=0)
    """Memory for keys and values. Not set: on a CPU what `concurrency` full contexts need, but at
    most 30 % of the free memory; on a GPU see `gpu_memory_utilization`."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that vLLM may take; without meaning on a CPU."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that one engine spans. On a CPU so many processes, each with its share of the cores: a
    way to try what a GPU will do, never faster than 1."""
    prefix_caching: bool = True
    """Keep the keys and values of prompt beginnings that several requests share."""
    speculation: Literal["off", "ngram"] | None = None
    """`ngram`: guess the next tokens from where the last ones stood before in prompt and answer,
    and check them all at once; the answers' distribution stays what it was. It pays for methods
    that repeat their source. Not set: the method decides, and `off` outside of one."""
    speculative_tokens: int = Field(default=4, ge=1)
    """Tokens guessed at a time."""
    enforce_eager: bool | None = None
    """No compilation and no CUDA graphs; not set: True on a CPU, where compiling costs minutes."""

    def context_of(self, model: ModelFolder) -> int:
        """Tokens of prompt and answer together."""
        return min(self.max_model_len or model.context, model.context)


def set_environment() -> None:
    """Set what vLLM reads when it is imported; what the user has set stands."""
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": WAIT_POLICY,
    }.items():
        os.environ.setdefault(name, value)


def engine_arguments(config: VllmSettings, model: ModelFolder, banned: list[int]) -> dict[str, Any]:
    """Arguments of vLLM's `EngineArgs`, by name.

    Args:
        config: The settings.
        model: What is to run.
        banned: Token ids that are never sampled.

    Raises:
        ConfigError: vLLM cannot run this model here.
    """
    from vllm.platforms import current_platform

    context = config.context_of(model)
    settings: dict[str, Any] = {}
    on_cpu = current_platform.is_cpu()
    if on_cpu:
        _check_head_size(model)
        if config.tensor_parallel > 1:
            _share_cores(config.tensor_parallel)
            settings["distributed_executor_backend"] = "mp"
        settings |= {
            "kv_cache_memory_bytes": _cpu_cache_bytes(config, model, context),
            # vLLM rewinds a request's generator after a partial prefill, which a CPU generator
            # cannot do: with seeds, prompts must be taken whole.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(context, 4096),
        }
    elif config.kv_cache_gb is not None:
        settings["kv_cache_memory_bytes"] = int(config.kv_cache_gb * _GIB)
    if config.speculation == "ngram":
        settings["speculative_config"] = {
            "method": "ngram",
            "num_speculative_tokens": config.speculative_tokens,
            "prompt_lookup_max": _LOOKUP[1],
            "prompt_lookup_min": _LOOKUP[0],
        }
        if on_cpu:
            settings["worker_extension_cls"] = _MENDED
    elif banned:
        # The key is written out: importing it would import vLLM before its environment is set.
        settings |= {
            "logits_processors": ["megatron_synth.engines.banned:BannedIds"],
            "additional_config": {"megatron_synth_banned_ids": banned},
        }
    return {
        "model": str(model.path),
        "skip_tokenizer_init": True,
        "dtype": config.dtype or model.dtype,  # vLLM's own default turns float32 into float16
        "max_model_len": context,
        "max_num_seqs": config.concurrency,
        "tensor_parallel_size": config.tensor_parallel,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "enable_prefix_caching": config.prefix_caching,
        "enforce_eager": on_cpu if config.enforce_eager is None else config.enforce_eager,
        "generation_config": "vllm",  # not what a model's folder may ask for
        "trust_remote_code": False,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        **settings,
    }


def allowed_ids(
    config: VllmSettings, model: ModelFolder, banned: Collection[int]
) -> list[int] | None:
    """What to name as allowed with every request, where no logits processor can ban the rest.

    vLLM takes no logits processor of ours beside speculation; a list with each request costs
    O(vocabulary) a request instead.
    """
    if config.speculation != "ngram" or not banned:
        return None
    return sorted(set(range(model.vocab_size)).difference(banned))


def _check_head_size(model: ModelFolder) -> None:
    if model.head_size not in _CPU_HEAD_SIZES:
        raise ConfigError(
            f"vLLM on a CPU has no attention kernel for head size {model.head_size}",
            where=model.path,
            fix=f"Head sizes it knows: {', '.join(map(str, _CPU_HEAD_SIZES))}. Choose hidden_size "
            "/ num_attention_heads accordingly when the model is made.",
        )


def _share_cores(processes: int) -> None:
    """Give each process of a tensor-parallel engine as many threads; what the user has set stands.

    Left alone vLLM binds each to a NUMA node of its own, and asks for as many nodes.
    """
    cores = len(os.sched_getaffinity(0))
    if processes > cores:
        raise ConfigError(
            f"tensor_parallel is {processes}, but there is no GPU here and {cores} cores",
            fix="Set engine.tensor_parallel=1: one engine uses all cores anyway.",
        )
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("OMP_NUM_THREADS", str(cores // processes))


def _cpu_cache_bytes(config: VllmSettings, model: ModelFolder, context: int) -> int:
    if config.kv_cache_gb is not None:
        return int(config.kv_cache_gb * _GIB)
    import psutil

    blocks = -(-context // _CPU_BLOCK) + 1
    wanted = config.concurrency * blocks * _CPU_BLOCK * model.cache_bytes_per_token
    return min(wanted, int(psutil.virtual_memory().available * _CPU_CACHE_SHARE))
