"""An engine that follows a script, for tests: no model, no processes, the same answers always."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from megatron_synth.config import RunError
from megatron_synth.corpus import Document
from megatron_synth.engines import Completion, Request
from megatron_synth.synthesis import Item, Method
from megatron_synth.tokens import Tokenizer

BEGINNINGS = ["ba", "ke", "li", "mo", "nu", "ra", "si", "to", "vu", "ze"]
WORDS = [a + b for a in BEGINNINGS for b in ("dan", "fer", "gol", "mis", "tar")]


def honest_text(key: str, words: int = 90) -> str:
    """Text that differs from key to key and passes the filters."""
    choose = random.Random(key)
    return " ".join(choose.choice(WORDS) for _ in range(words))


@dataclass
class ScriptedEngine:
    """Answers in another order than asked, a few at a time.

    Attributes:
        tokenizer: Encodes the scripted texts.
        script: From a request to its text, to a ready `Completion`, or to an exception to raise.
        die_after: Raise, as a dead engine does, after so many answers.
        asked: Keys in the order in which they came.
    """

    tokenizer: Tokenizer
    script: Callable[[Request], str | Completion] = lambda request: honest_text(request.key)
    concurrency: int = 8
    die_after: int | None = None
    asked: list[str] = field(default_factory=list)
    cancelled: int = 0
    closed: bool = False

    def __post_init__(self) -> None:
        self._running: list[Request] = []
        self._order = random.Random(7)
        self._answered = 0

    def submit(self, request: Request) -> None:
        self.asked.append(request.key)
        self._running.append(request)
        assert len(self._running) <= self.concurrency

    def step(self) -> list[Completion]:
        assert self._running, "step without a request would wait for ever"
        self._order.shuffle(self._running)
        count = self._order.randint(0, min(3, len(self._running)))
        done, self._running = self._running[:count], self._running[count:]
        return [self._answer(request) for request in done]

    def _answer(self, request: Request) -> Completion:
        if self.die_after is not None and self._answered >= self.die_after:
            raise RunError("the scripted engine died")
        self._answered += 1
        scripted = self.script(request)
        if isinstance(scripted, Completion):
            return scripted
        ids = tuple(self.tokenizer.encode(scripted))
        return Completion(
            key=request.key,
            token_ids=ids,
            finish_reason="stop",
            prompt_tokens=len(request.prompt),
            output_tokens=len(ids) + 1,
        )

    def cancel(self) -> None:
        self.cancelled += len(self._running)
        self._running = []

    def close(self) -> None:
        self.closed = True


def write_with(
    method: Method, item: Item, script: Callable[[Request], str | Completion]
) -> tuple[Document, list[list[Request]]]:
    """Write an item with scripted answers: the document, and what was asked at each step."""
    asked: list[list[Request]] = []
    writing = method.write(item)
    try:
        requests = next(writing)
        while True:
            asked.append(requests)
            answers = [script(request) for request in requests]
            requests = writing.send(
                [
                    answer
                    if isinstance(answer, Completion)
                    else Completion(request.key, answer, prompt_tokens=7, output_tokens=3)
                    for request, answer in zip(requests, answers, strict=True)
                ]
            )
    except StopIteration as finished:
        return finished.value, asked
