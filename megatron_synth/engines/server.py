"""A vLLM server that the step starts for itself, and ends with itself.

The same settings and the same answers as vLLM inside the process, at the cost of a second process
and of HTTP between the two: for what must not share its process, such as a driver with threads of
its own, and for a server that may die without the driver.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from megatron_synth.config import DataError
from megatron_synth.engines.endpoint import EndpointConfig, EndpointEngine
from megatron_synth.engines.model_folder import read_model_folder
from megatron_synth.engines.prompt_ids import PromptIds
from megatron_synth.engines.requests import Completion, Request
from megatron_synth.engines.server_process import ServerProcess
from megatron_synth.engines.vllm_settings import (
    VllmSettings,
    allowed_ids,
    engine_arguments,
    set_environment,
)
from megatron_synth.runs import get_logger
from megatron_synth.tokens import Tokenizer

_LOG = get_logger(__name__)

_DEATH_SECONDS = 2.0  # from a cut connection to the end of the process that cut it


class ServerConfig(VllmSettings):
    """A vLLM server of our own."""

    kind: Literal["server"] = "server"
    """A vLLM server that is started for the step and ended with it."""
    start_seconds: float = Field(default=900.0, gt=0)
    """Longest wait until the server answers."""
    timeout_seconds: float = Field(default=600.0, gt=0)
    """Longest wait for one answer; then the request counts as failed for a passing reason."""
    restarts: int = Field(default=1, ge=0)
    """How often a server that died is started anew before the step fails."""


class ServerEngine:
    """A server of our own behind `submit` and `step` (see `Engine`).

    Token ids go to it and come back: our own tokenizer encodes and decodes, as for `VllmEngine`.

    Args:
        config: See `ServerConfig`.
        model: Folder in Hugging Face form.
        tokenizer: See `VllmEngine`.
        banned_ids: See `VllmEngine`.

    Raises:
        DataError: The model folder is missing or damaged.
        ConfigError: vLLM cannot run this model here, or its chat template cannot be used.
        RunError: The server ended before it answered, or never did.
    """

    def __init__(
        self,
        config: ServerConfig,
        model: Path,
        *,
        tokenizer: Tokenizer | None = None,
        banned_ids: Iterable[int] = (),
    ) -> None:
        self.concurrency = config.concurrency
        self.model = read_model_folder(model)
        self.context = config.context_of(self.model)
        self._config = config
        self._prompts = PromptIds(config, model, self.model.vocab_size, tokenizer)
        set_environment()
        banned = sorted(set(banned_ids) - self._prompts.stop_ids)
        self._arguments = engine_arguments(config, self.model, banned)
        # Only `stop_ids` end an answer, as inside the process.
        self._extra_body: dict[str, Any] = {"ignore_eos": True, "return_token_ids": True}
        if (allowed := allowed_ids(config, self.model, banned)) is not None:
            self._extra_body["allowed_token_ids"] = allowed
        self._asked: dict[str, Request] = {}
        self._refused: list[Completion] = []
        self._restarts = config.restarts
        self._start()

    def submit(self, request: Request) -> None:
        """Take a request; one that cannot be asked comes back from the next `step`."""
        try:
            ids, stop_ids = self._prompts.encode(request)
        except (ValueError, TypeError, DataError) as error:
            refused = Completion.failed(request.key, " ".join(str(error).split()), transient=False)
            self._refused.append(refused)
            return
        sampling = request.sampling
        room = max(1, self.context - len(ids))  # vLLM's server refuses what would not fit
        asked = replace(
            request,
            prompt=ids,
            sampling=replace(
                sampling,
                max_tokens=min(sampling.max_tokens, room),
                stop_ids=tuple(sorted(stop_ids)),
            ),
        )
        self._asked[request.key] = asked
        self._endpoint.submit(asked)

    def step(self) -> list[Completion]:
        """Wait for at least one answer; all that are there.

        Raises:
            RunError: The server died, more often than it may be started anew.
        """
        refused, self._refused = self._refused, []
        if refused or not self._asked:
            return refused
        found = self._endpoint.step()
        if any(c.transient for c in found) and self._server.ended(_DEATH_SECONDS):
            # What failed because of that is asked again, and counts as no try.
            found = [c for c in found if not c.transient]
            answers = [self._completion(c) for c in found]
            self._start_anew()
            return answers
        return [self._completion(c) for c in found]

    def cancel(self) -> None:
        """Forget every unfinished request; the server sees its connections close."""
        self._endpoint.cancel()
        self._asked.clear()
        self._refused.clear()

    def close(self) -> None:
        """End the server with all of its processes."""
        try:
            self._endpoint.close()
        finally:
            self._server.close()

    def _start(self) -> None:
        config = self._config
        self._server = ServerProcess(self._arguments, self.model.path, config.start_seconds)
        self._endpoint = EndpointEngine(
            EndpointConfig(
                url=self._server.url,
                model=self._server.name,
                concurrency=config.concurrency,
                timeout_seconds=config.timeout_seconds,
            ),
            key=self._server.key,
            extra_body=self._extra_body,
        )

    def _start_anew(self) -> None:
        error = self._server.failure(
            "generating", "Answers so far are kept: run the same command again to go on."
        )
        if self._restarts == 0:
            raise error
        self._restarts -= 1
        _LOG.warning("%s", error)
        _LOG.warning("starting the vLLM server anew, %d times more", self._restarts)
        self.close()
        self._start()
        for request in self._asked.values():
            self._endpoint.submit(request)

    def _completion(self, completion: Completion) -> Completion:
        request = self._asked.pop(completion.key)
        if completion.error is not None:
            return completion
        ids = completion.token_ids
        kept = ids[:-1] if ids and ids[-1] in request.sampling.stop_ids else ids
        return replace(completion, text=self._prompts.decode(kept), token_ids=kept)
