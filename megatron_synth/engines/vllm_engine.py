"""vLLM inside this process, on a CPU or on GPUs."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from megatron_synth.config import Config, ConfigError
from megatron_synth.engines.chat import read_chat_form
from megatron_synth.engines.model_folder import ModelFolder, read_model_folder
from megatron_synth.engines.requests import Completion, Request, Sampling
from megatron_synth.engines.vllm_errors import explain
from megatron_synth.runs import get_logger
from megatron_synth.tokens import Tokenizer

_LOG = get_logger(__name__)

_GIB = 1 << 30
_CPU_BLOCK = 128  # tokens in a block of vLLM's cache on a CPU
_CPU_CACHE_SHARE = 0.3  # of the memory that is free now, at most
WAIT_POLICY = "passive"
"""For OMP_WAIT_POLICY: threads that wait for each other sleep instead of spinning. Beside other
work on the same two cores this was 10 to 20 times faster (1,400 tokens/s against 70)."""
_CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


class VllmConfig(Config):
    """How vLLM runs. The defaults suit both a small CPU and a GPU."""

    kind: Literal["vllm"] = "vllm"
    """vLLM inside the process."""
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
    """GPUs that one engine spans."""
    prefix_caching: bool = True
    """Keep the keys and values of prompt beginnings that several requests share."""
    enforce_eager: bool | None = None
    """No compilation and no CUDA graphs; not set: True on a CPU, where compiling costs minutes."""


class VllmEngine:
    """Continuous batching over `submit` and `step` (see `Engine`).

    Prompts go in as token ids and answers come out as token ids: our own tokenizer turns text
    into ids and back, so that no text can become a control token. A text prompt goes in the
    model's chat form where it has one (see `VllmConfig.chat`), and then any EOS of the model's
    generation config ends the answer, besides the request's own stop ids.

    Args:
        config: See `VllmConfig`.
        model: Folder in Hugging Face form.
        tokenizer: Encodes text prompts and decodes answers; without one, prompts must be token
            ids and answers have no text.
        banned_ids: Token ids that are never sampled, whatever their logits; those that end an
            answer in the chat form are not banned.

    Raises:
        DataError: The model folder is missing or damaged.
        ConfigError: vLLM cannot run this model here, or its chat template cannot be used.
        RunError: vLLM failed to start: memory, a port, an error of its own.
    """

    def __init__(
        self,
        config: VllmConfig,
        model: Path,
        *,
        tokenizer: Tokenizer | None = None,
        banned_ids: Iterable[int] = (),
    ) -> None:
        self.concurrency = config.concurrency
        self.model = read_model_folder(model)
        self.context = min(config.max_model_len or self.model.context, self.model.context)
        self._tokenizer = tokenizer
        self._chat = (
            read_chat_form(model, tokenizer, config.chat, config.chat_options)
            if tokenizer
            else None
        )
        banned = set(banned_ids) - (self._chat.stop_ids if self._chat else set())
        self._stop_ids: dict[str, frozenset[int]] = {}
        self._refused: list[Completion] = []
        _set_environment()
        try:
            self._engine = _start(config, self.model, self.context, sorted(banned))
        except Exception as error:
            if isinstance(error, ConfigError):
                raise
            raise explain(error, model, "starting") from error

    def submit(self, request: Request) -> None:
        """Take a request; one that vLLM refuses comes back from the next `step` with its error."""
        from vllm.inputs import tokens_input

        ids = self._encode(request.prompt)
        stop_ids = frozenset(request.sampling.stop_ids)
        if self._chat and isinstance(request.prompt, str):
            stop_ids |= self._chat.stop_ids
        try:
            self._check_ids(ids)
            self._engine.add_request(
                request.key, tokens_input(ids), _sampling_params(request.sampling, stop_ids)
            )
        except (ValueError, TypeError, _refusal()) as error:
            refused = Completion.failed(request.key, " ".join(str(error).split()), transient=False)
            self._refused.append(refused)
            return
        self._stop_ids[request.key] = stop_ids

    def step(self) -> list[Completion]:
        """Generate one token for each running request; what has finished.

        Raises:
            RunError: vLLM died.
        """
        refused, self._refused = self._refused, []
        if not self._stop_ids:
            return refused
        try:
            outputs = self._engine.step()
        except Exception as error:
            raise explain(error, self.model.path, "generating") from error
        return refused + [self._completion(output) for output in outputs if output.finished]

    def cancel(self) -> None:
        """Forget every unfinished request."""
        self._engine.abort_request(list(self._stop_ids))
        self._stop_ids.clear()
        self._refused.clear()

    def close(self) -> None:
        """End vLLM's processes and free its memory."""
        core = getattr(self._engine, "engine_core", None)
        if core is not None:
            core.shutdown()
        del self._engine
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()

    def _encode(self, prompt: str | list[int]) -> list[int]:
        if not isinstance(prompt, str):
            return prompt
        if self._tokenizer is None:
            raise ConfigError("a text prompt needs an engine with a tokenizer")
        return self._chat.encode(prompt) if self._chat else self._tokenizer.encode(prompt)

    def _check_ids(self, ids: list[int]) -> None:
        """One bad id would end the whole engine (vLLM itself checks ids only with a tokenizer)."""
        if not ids:
            raise ValueError("the prompt is empty")
        if min(ids) < 0 or max(ids) >= self.model.vocab_size:
            raise ValueError(f"a token id lies outside 0..{self.model.vocab_size - 1}")

    def _completion(self, output: Any) -> Completion:
        answer = output.outputs[0]
        ids = tuple(int(i) for i in answer.token_ids)
        stop_ids = self._stop_ids.pop(output.request_id)
        kept = ids[:-1] if ids and ids[-1] in stop_ids else ids
        return Completion(
            key=output.request_id,
            text=self._tokenizer.decode(kept) if self._tokenizer else "",
            token_ids=kept,
            finish_reason=str(answer.finish_reason),
            prompt_tokens=len(output.prompt_token_ids or ()),
            output_tokens=len(ids),
        )


def _set_environment() -> None:
    """Set what vLLM reads when it is imported; what the user has set stands."""
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": WAIT_POLICY,
        # The engine's loop in this process: half the memory, nothing to leave behind after a
        # kill, and the same speed, since vLLM neither tokenizes nor detokenizes here.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }.items():
        os.environ.setdefault(name, value)


def _start(config: VllmConfig, model: ModelFolder, context: int, banned: list[int]) -> Any:
    from vllm import EngineArgs, LLMEngine
    from vllm.platforms import current_platform

    settings: dict[str, Any] = {}
    on_cpu = current_platform.is_cpu()
    if on_cpu:
        _check_head_size(model)
        if config.tensor_parallel > 1:
            raise ConfigError(
                f"tensor_parallel is {config.tensor_parallel}, but there is no GPU here",
                fix="Set engine.tensor_parallel=1: one engine uses all cores anyway.",
            )
        settings |= {
            "kv_cache_memory_bytes": _cpu_cache_bytes(config, model, context),
            # vLLM rewinds a request's generator after a partial prefill, which a CPU generator
            # cannot do: with seeds, prompts must be taken whole.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(context, 4096),
        }
    elif config.kv_cache_gb is not None:
        settings["kv_cache_memory_bytes"] = int(config.kv_cache_gb * _GIB)
    if banned:
        # The key is written out: importing it would import vLLM before its environment is set.
        settings |= {
            "logits_processors": ["megatron_synth.engines.banned:BannedIds"],
            "additional_config": {"megatron_synth_banned_ids": banned},
        }
    return LLMEngine.from_engine_args(
        EngineArgs(
            model=str(model.path),
            skip_tokenizer_init=True,
            dtype=config.dtype or model.dtype,  # vLLM's own default turns float32 into float16
            max_model_len=context,
            max_num_seqs=config.concurrency,
            tensor_parallel_size=config.tensor_parallel,
            gpu_memory_utilization=config.gpu_memory_utilization,
            enable_prefix_caching=config.prefix_caching,
            enforce_eager=on_cpu if config.enforce_eager is None else config.enforce_eager,
            generation_config="vllm",  # not what a model's folder may ask for
            trust_remote_code=False,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            **settings,
        )
    )


def _check_head_size(model: ModelFolder) -> None:
    if model.head_size not in _CPU_HEAD_SIZES:
        raise ConfigError(
            f"vLLM on a CPU has no attention kernel for head size {model.head_size}",
            where=model.path,
            fix=f"Head sizes it knows: {', '.join(map(str, _CPU_HEAD_SIZES))}. Choose hidden_size "
            "/ num_attention_heads accordingly when the model is made.",
        )


def _cpu_cache_bytes(config: VllmConfig, model: ModelFolder, context: int) -> int:
    if config.kv_cache_gb is not None:
        return int(config.kv_cache_gb * _GIB)
    import psutil

    blocks = -(-context // _CPU_BLOCK) + 1
    wanted = config.concurrency * blocks * _CPU_BLOCK * model.cache_bytes_per_token
    return min(wanted, int(psutil.virtual_memory().available * _CPU_CACHE_SHARE))


def _sampling_params(sampling: Sampling, stop_ids: frozenset[int]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed,
        stop_token_ids=sorted(stop_ids),
        ignore_eos=True,  # the model's own config names an EOS too; only `stop_ids` count
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _refusal() -> type[Exception]:
    from vllm.exceptions import VLLMClientError

    refusal: type[Exception] = VLLMClientError
    return refusal
