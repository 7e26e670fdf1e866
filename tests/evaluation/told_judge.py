"""A judge that says what a test tells it to: no model, answers a few at a time."""

from collections.abc import Callable
from dataclasses import replace

from megatron_synth.config import RunError
from megatron_synth.engines import Completion, Request


class ToldJudge:
    """Answers with `say(prompt)`: a text, a `Completion`, or None for a passing failure."""

    concurrency = 5

    def __init__(self, say: Callable[[str], str | Completion | None], die_after: int | None = None):
        self._say = say
        self._die_after = die_after
        self._running: list[Request] = []
        self.asked: list[str] = []
        self.closed = False

    def submit(self, request: Request) -> None:
        self.asked.append(request.prompt)
        self._running.append(request)
        assert len(self._running) <= self.concurrency

    def step(self) -> list[Completion]:
        assert self._running, "step without a request would wait for ever"
        if self._die_after is not None and len(self.asked) > self._die_after:
            raise RunError("the judge died")
        done, self._running = self._running[-2:], self._running[:-2]
        return [self._answer(request) for request in done]

    def _answer(self, request: Request) -> Completion:
        said = self._say(request.prompt)
        if said is None:
            return Completion.failed(request.key, "busy", transient=True)
        if isinstance(said, Completion):
            return replace(said, key=request.key)
        return Completion(request.key, text=said)

    def cancel(self) -> None:
        self._running = []

    def close(self) -> None:
        self.closed = True
