"""Items on their way: a method's coroutine, fed with the answers that are committed."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from megatron_synth.corpus import Document
from megatron_synth.engines import Completion, Request, RequestLog
from megatron_synth.synthesis.contract import Item, Method, Writing


@dataclass
class Running:
    """An item whose document is being written.

    Attributes:
        place: How many items of the shard come before it.
        item: Which.
        document: Set when it is written.
    """

    place: int
    item: Item
    writing: Writing
    document: Document | None = None
    _requests: list[Request] = field(default_factory=list)
    _answers: dict[str, Completion] = field(default_factory=dict)

    def start(self, log: RequestLog) -> list[Request]:
        """Run up to the first question that the log does not answer; what is to be asked."""
        self._go_on(None, log)
        return self._unanswered()

    def answer(self, completion: Completion, log: RequestLog) -> list[Request]:
        """Take a committed answer; what is to be asked next, if that was the last one missing."""
        self._answers[completion.key] = completion
        if self._unanswered():
            return []
        self._go_on([self._answers[request.key] for request in self._requests], log)
        return self._unanswered()

    def _go_on(self, answers: list[Completion] | None, log: RequestLog) -> None:
        try:
            while True:
                if answers is None:
                    self._requests = next(self.writing)
                else:
                    self._requests = self.writing.send(answers)
                keys = [request.key for request in self._requests]
                self._answers = {key: log.read(key) for key in keys if key in log}
                if len(self._answers) < len(keys):
                    return
                answers = [self._answers[key] for key in keys]
        except StopIteration as finished:
            self._requests = []
            self.document = finished.value

    def _unanswered(self) -> list[Request]:
        return [request for request in self._requests if request.key not in self._answers]


def written(method: Method, item: Item, log: RequestLog) -> Document | None:
    """The document that the log's answers make; None where one is missing."""
    running = Running(0, item, method.write(item))
    running.start(log)
    running.writing.close()
    return running.document


def replay(
    method: Method, items: Iterator[Item], log: RequestLog
) -> Iterator[tuple[Item, Document]]:
    """Items with their documents, in order, up to the first that the log does not answer."""
    for item in items:
        document = written(method, item, log)
        if document is None:
            return
        yield item, document
