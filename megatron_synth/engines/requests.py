"""What goes into an engine and what comes out: plain records, the same for every engine."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Sampling:
    """How one answer is drawn.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: Share of probability kept at each token, in (0, 1].
        max_tokens: Longest answer, its stop token included.
        seed: Seed of this one answer; two answers to one prompt need two seeds.
        stop_ids: Token ids that end the answer; they are no part of its text.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return {**vars(self), "stop_ids": list(self.stop_ids)}


@dataclass(frozen=True)
class Request:
    """One question to an engine.

    Attributes:
        key: Names the request for ever (see `RequestLog`): hex digits, no spaces.
        prompt: Text, or token ids that are handed to the model as they are.
        sampling: How the answer is drawn.
        system: System message before a prompt that is text. A chat form with a place for it has
            it there; else, and without a chat form, it stands before the prompt.
    """

    key: str
    prompt: str | list[int]
    sampling: Sampling
    system: str | None = None


def join_system(system: str | None, prompt: str) -> str:
    """One text of a system message and a prompt, where there are no messages or no system's."""
    return f"{system}\n\n{prompt}" if system else prompt


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        key: Of the request.
        text: The answer, control tokens left out; empty where the engine knows no tokenizer.
        token_ids: The answer's ids without the stop token.
        finish_reason: `stop` (it ended by itself), `length` (cut at max_tokens), `error`.
        prompt_tokens: Length of the prompt.
        output_tokens: Tokens that were generated, the stop token included.
        error: Why there is no answer, else None.
        transient: The same request may succeed later (only with `error`).
    """

    key: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None
    transient: bool = False

    @classmethod
    def failed(cls, key: str, error: str, *, transient: bool) -> "Completion":
        """An answer that says why there is none."""
        return cls(key=key, finish_reason="error", error=error, transient=transient)


class Engine(Protocol):
    """Anything that answers requests, several at a time.

    `submit` hands a request over without waiting; `step` works until at least one request may
    have ended and returns those that did. A request that cannot be answered comes back as a
    `Completion` with `error`; a dead engine raises `RunError`.
    """

    concurrency: int
    """How many requests keep the engine fully busy."""

    def submit(self, request: Request) -> None:
        """Take a request; it is worked on in the following steps."""
        ...

    def step(self) -> list[Completion]:
        """Go on with all submitted requests; answers that are finished now."""
        ...

    def cancel(self) -> None:
        """Forget every unfinished request."""
        ...

    def close(self) -> None:
        """Give back memory and processes."""
        ...


def complete(engine: Engine, requests: Iterable[Request]) -> Iterator[Completion]:
    """Answers to `requests`, as they finish, the engine being kept full.

    `requests` is read only as fast as the engine takes them. Closing the iterator cancels what
    is unfinished.
    """
    waiting = iter(requests)
    in_flight = 0
    exhausted = False
    try:
        while True:
            while not exhausted and in_flight < engine.concurrency:
                request = next(waiting, None)
                if request is None:
                    exhausted = True
                    break
                engine.submit(request)
                in_flight += 1
            if not in_flight:
                return
            for completion in engine.step():
                in_flight -= 1
                yield completion
    finally:
        if in_flight:
            engine.cancel()
