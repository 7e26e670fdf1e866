"""Any OpenAI-compatible endpoint as an engine: vLLM's server, other servers, hosted models.

Requests run on an event loop in a thread of its own, `concurrency` at a time. A request that
failed for a passing reason comes back as such; when it is submitted again, it waits first, twice
as long each time, or as long as the server asked for. Errors that no request can outlive, such as
a refused key, end the engine with one message.
"""

import asyncio
import os
import queue
import random
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import httpx
from pydantic import Field

from megatron_synth.config import Config, ConfigError, RunError
from megatron_synth.engines.requests import Completion, Request, join_system

_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_HOPELESS = {
    401: ("refused the key", "Set the environment variable that api_key_env names."),
    403: ("refused the key", "The key has no right to this model."),
    404: ("knows no such model or path", "Check url (most end in /v1) and model."),
}
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_MESSAGE = 300  # characters of a server's answer that are shown
_END_SECONDS = 10.0


class EndpointConfig(Config):
    """Where an OpenAI-compatible endpoint is, and how it is asked."""

    kind: Literal["endpoint"] = "endpoint"
    """A server that runs already, here or elsewhere."""
    url: str = Field(pattern=r"^https?://\S+$")
    """Such as `http://127.0.0.1:8000/v1`; requests go to `URL/chat/completions` or
    `URL/completions`."""
    model: str = Field(min_length=1)
    """The model's name there."""
    chat: bool = True
    """Text prompts go as one user message, in the model's own chat form. False: as they are.
    Token ids always go as they are."""
    system_role: bool = True
    """A method's system prompt goes as a system message. False, for a server that refuses one:
    before the user's text, in one message."""
    api_key_env: str | None = None
    """Environment variable that holds the key; the key itself never stands in a config or log."""
    concurrency: int = Field(default=64, ge=1)
    """Requests that are worked on at once."""
    timeout_seconds: float = Field(default=600.0, gt=0)
    """Longest wait for one answer; then the request counts as failed for a passing reason."""
    backoff_seconds: float = Field(default=1.0, ge=0)
    """Wait before a second try; it doubles with each further one, and is drawn between half of
    that and all of it, so that many clients do not come back at once."""
    backoff_max_seconds: float = Field(default=60.0, ge=0)
    """Longest wait before a try, whatever the server asks for."""


class EndpointEngine:
    """An endpoint behind `submit` and `step` (see `Engine`).

    Args:
        config: See `EndpointConfig`.
        key: Instead of the one that `api_key_env` names.
        extra_body: Sent with every request, for what only some servers know.

    Raises:
        ConfigError: The environment variable for the key is not set.
    """

    def __init__(
        self,
        config: EndpointConfig,
        *,
        key: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        self.concurrency = config.concurrency
        self._config = config
        self._key = key or _read_key(config.api_key_env)
        self._extra_body = dict(extra_body or {})
        self._finished: queue.SimpleQueue[Completion | Exception] = queue.SimpleQueue()
        self._failures: Counter[str] = Counter()
        self._asked_to_wait: dict[str, float] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}  # of the loop's thread alone
        self._in_flight: set[str] = set()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(config.timeout_seconds, connect=30.0),
            limits=httpx.Limits(max_connections=config.concurrency),
            trust_env=httpx.URL(config.url).host not in _LOCAL,  # no proxy leads back to here
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="endpoint-engine", daemon=True
        )
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Take a request; one that failed before waits before it is sent again."""
        self._in_flight.add(request.key)
        delay = self._delay(request.key)
        self._loop.call_soon_threadsafe(self._start, request, delay)

    def step(self) -> list[Completion]:
        """Wait for at least one answer; all that are there.

        Raises:
            ConfigError: The endpoint refuses the key, or knows no such model.
            RunError: The client itself failed.
        """
        if not self._in_flight:
            return []
        found = [self._finished.get()]
        while not self._finished.empty():
            found.append(self._finished.get())
        completions = []
        for item in found:
            if isinstance(item, Exception):
                raise item
            if item.key in self._in_flight:  # else it was cancelled while it ended
                self._in_flight.remove(item.key)
                completions.append(item)
        return completions

    def cancel(self) -> None:
        """Forget every unfinished request; the server sees its connection close."""
        asyncio.run_coroutine_threadsafe(self._cancel_tasks(), self._loop).result(_END_SECONDS)
        while not self._finished.empty():
            self._finished.get()
        self._in_flight.clear()

    def close(self) -> None:
        """Close all connections and end the thread."""
        self.cancel()
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result(_END_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_END_SECONDS)
        self._loop.close()

    def _delay(self, key: str) -> float:
        tries = self._failures[key]
        if not tries:
            return 0.0
        asked = self._asked_to_wait.pop(key, 0.0)
        # 2 ** 60 seconds are beyond every cap already; a larger power would not fit a float.
        doubled = self._config.backoff_seconds * 2.0 ** min(tries - 1, 60)
        own = doubled * random.uniform(0.5, 1.0)
        return min(max(own, asked), self._config.backoff_max_seconds)

    def _start(self, request: Request, delay: float) -> None:
        task = self._loop.create_task(self._answer(request, delay))
        self._tasks[request.key] = task
        task.add_done_callback(lambda _: self._tasks.pop(request.key, None))

    async def _cancel_tasks(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, request: Request, delay: float) -> None:
        """Put the request's completion, or what ends the engine, into the queue."""
        try:
            await asyncio.sleep(delay)
            self._finished.put(await self._ask(request))
        except asyncio.CancelledError:
            raise
        except ConfigError as error:
            self._finished.put(error)
        except Exception as error:  # noqa: BLE001  a thread must hand on what ends it
            unexpected = RunError(
                f"asking the endpoint failed: {type(error).__name__}: {error}",
                where=self._config.url,
            )
            unexpected.__cause__ = error
            self._finished.put(unexpected)

    async def _ask(self, request: Request) -> Completion:
        path, body = self._body(request)
        url = f"{self._config.url.rstrip('/')}/{path}"
        try:
            response = await self._client.post(url, json=body)
        except httpx.RequestError as error:  # refused, cut, silent for too long, not decodable
            return self._passing(request.key, f"{type(error).__name__}: {error}")
        status = response.status_code
        if status != httpx.codes.OK:
            text = f"status {status}: {self._shown(response.text)}"
            if status in _HOPELESS:
                what, fix = _HOPELESS[status]
                raise ConfigError(f"the endpoint {what} ({text})", where=url, fix=fix)
            if status in _PASSING:
                return self._passing(request.key, text, response.headers.get("retry-after"))
            return Completion.failed(request.key, text, transient=False)
        try:
            return _read_answer(request.key, response.json())
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return self._passing(
                request.key, f"not an OpenAI answer: {self._shown(response.text)!r}"
            )

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self._config.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            **self._extra_body,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.stop_ids:
            body["stop_token_ids"] = list(sampling.stop_ids)  # vLLM's; others have no such thing
        prompt, system = request.prompt, request.system
        if isinstance(prompt, str) and not (self._config.chat and self._config.system_role):
            prompt, system = join_system(system, prompt), None
        if isinstance(prompt, str) and self._config.chat:
            messages = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": prompt})
            return "chat/completions", body | {"messages": messages}
        return "completions", body | {"prompt": prompt}

    def _passing(self, key: str, error: str, retry_after: str | None = None) -> Completion:
        self._failures[key] += 1
        try:
            self._asked_to_wait[key] = max(0.0, float(retry_after or 0))
        except ValueError:  # HTTP also allows a date; our own wait will do
            self._asked_to_wait[key] = 0.0
        return Completion.failed(key, self._shown(error), transient=True)

    def _shown(self, text: str) -> str:
        """A server's words, short, and without the key should it repeat it."""
        short = " ".join(text.split())
        if self._key:
            short = short.replace(self._key, "***")
        return short if len(short) <= _MESSAGE else f"{short[:_MESSAGE]}…"


def _read_key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {name} is not set, and api_key_env names it",
            fix=f"Run: export {name}=… with the endpoint's key.",
        )
    return key


def _read_answer(key: str, answer: dict[str, Any]) -> Completion:
    """The completion in an OpenAI answer; raises where it is none."""
    choice = answer["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    usage = answer.get("usage") or {}
    reason = choice.get("finish_reason")
    if reason == "content_filter":
        return Completion.failed(key, "refused by the endpoint's content filter", transient=False)
    if not isinstance(text, str) or reason not in ("stop", "length"):
        raise ValueError(f"finish_reason {reason!r}")
    return Completion(
        key=key,
        text=text,
        token_ids=tuple(int(i) for i in choice.get("token_ids") or ()),  # vLLM's, where asked for
        finish_reason=reason,
        prompt_tokens=int(usage.get("prompt_tokens", 0)),
        output_tokens=int(usage.get("completion_tokens", 0)),
    )
