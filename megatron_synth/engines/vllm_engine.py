"""vLLM inside this process, on a CPU or on GPUs."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from megatron_synth.config import ConfigError, DataError
from megatron_synth.engines.model_folder import read_model_folder
from megatron_synth.engines.prompt_ids import PromptIds
from megatron_synth.engines.requests import Completion, Request, Sampling
from megatron_synth.engines.scannable import make_scannable
from megatron_synth.engines.vllm_errors import explain
from megatron_synth.engines.vllm_settings import (
    VllmSettings,
    allowed_ids,
    engine_arguments,
    set_environment,
)
from megatron_synth.tokens import Tokenizer


class VllmConfig(VllmSettings):
    """vLLM inside the process."""

    kind: Literal["vllm"] = "vllm"
    """vLLM inside the process."""


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
        self.context = config.context_of(self.model)
        self._prompts = PromptIds(config, model, self.model.vocab_size, tokenizer)
        self._stop_ids: dict[str, frozenset[int]] = {}
        self._refused: list[Completion] = []
        banned = sorted(set(banned_ids) - self._prompts.stop_ids)
        self._allowed = allowed_ids(config, self.model, banned)
        set_environment()
        # The engine's loop in this process: half the memory, nothing to leave behind after a
        # kill, and the same speed, since vLLM neither tokenizes nor detokenizes here.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            from vllm import EngineArgs, LLMEngine

            make_scannable()
            arguments = engine_arguments(config, self.model, banned)
            self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        except Exception as error:
            if isinstance(error, ConfigError):
                raise
            raise explain(error, model, "starting") from error

    def submit(self, request: Request) -> None:
        """Take a request; one that vLLM refuses comes back from the next `step` with its error."""
        from vllm.inputs import tokens_input

        try:
            ids, stop_ids = self._prompts.encode(request)
            self._engine.add_request(
                request.key,
                tokens_input(ids),
                _sampling_params(request.sampling, stop_ids, self._allowed),
            )
        except (ValueError, TypeError, DataError, _refusal()) as error:
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

    def _completion(self, output: Any) -> Completion:
        answer = output.outputs[0]
        ids = tuple(int(i) for i in answer.token_ids)
        stop_ids = self._stop_ids.pop(output.request_id)
        kept = ids[:-1] if ids and ids[-1] in stop_ids else ids
        return Completion(
            key=output.request_id,
            text=self._prompts.decode(kept),
            token_ids=kept,
            finish_reason=str(answer.finish_reason),
            prompt_tokens=len(output.prompt_token_ids or ()),
            output_tokens=len(ids),
        )


def _sampling_params(
    sampling: Sampling, stop_ids: frozenset[int], allowed: list[int] | None
) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed,
        stop_token_ids=sorted(stop_ids),
        allowed_token_ids=allowed,
        skip_clone=True,  # made for this request alone
        ignore_eos=True,  # the model's own config names an EOS too; only `stop_ids` count
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _refusal() -> type[Exception]:
    from vllm.exceptions import VLLMClientError

    refusal: type[Exception] = VLLMClientError
    return refusal
