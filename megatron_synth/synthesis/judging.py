"""Verdicts of a judge model on single documents: strict answers, counted where they fail."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from megatron_synth.engines import Completion, Engine, Request, Sampling, complete
from megatron_synth.runs import hash_json
from megatron_synth.synthesis.prompts import load_prompt

_TRIES = 3
_EDGES = " \t\r\n.*_`'\"“”:"


@dataclass(frozen=True)
class Judgement:
    """A question with a fixed set of answers.

    Attributes:
        prompt: Name of the prompt file.
        fields: Fields of the prompt.
        labels: The answers that count.
    """

    prompt: str
    fields: frozenset[str]
    labels: tuple[str, ...]


RELEVANCE = Judgement("judge/relevance", frozenset({"source", "text"}), ("relevant", "irrelevant"))
"""Do source and document treat the same thing? (SBP B.3)"""
FACTUALITY = Judgement("judge/factuality", frozenset({"text"}), ("undefined", "no error", "error"))
"""Is what a document states true? (SBP B.2)"""


@dataclass(frozen=True)
class Verdicts:
    """What a judge said.

    Attributes:
        labels: How often each answer was given.
        unparseable: Answers that are none of the labels.
        failed: Questions without an answer.
    """

    labels: dict[str, int]
    unparseable: int
    failed: int

    @property
    def judged(self) -> int:
        """Questions with an answer that counts."""
        return sum(self.labels.values())

    @property
    def asked(self) -> int:
        """All questions."""
        return self.judged + self.unparseable + self.failed

    def share(self, label: str) -> float | None:
        """Share of an answer among those that count; None without any."""
        return self.labels[label] / self.judged if self.judged else None


def judge(
    judgement: Judgement, rows: Iterable[Mapping[str, str]], engine: Engine, max_tokens: int
) -> Verdicts:
    """Ask about each row; the likeliest answer (temperature 0) is taken.

    Args:
        judgement: The question.
        rows: Values of its fields. They are put into the prompt as they are.
        engine: The judge. What fails in passing is asked three times in all.
        max_tokens: Longest answer; one that is cut there does not count.
    """
    prompt = load_prompt(judgement.prompt, judgement.fields)
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens, seed=0)
    waiting = []
    for number, row in enumerate(rows):
        text = prompt.fill(row)
        waiting.append(Request(hash_json([prompt.identity, number, text]), text, sampling))
    answers: dict[str, Completion] = {}
    for _ in range(_TRIES):
        if not waiting:
            break
        for completion in complete(engine, waiting):
            answers[completion.key] = completion
        waiting = [request for request in waiting if answers[request.key].transient]
    labels = Counter(dict.fromkeys(judgement.labels, 0))
    unparseable = failed = 0
    for completion in answers.values():
        label = read_label(completion.text, judgement.labels)
        if completion.error is not None:
            failed += 1
        elif label is None or completion.finish_reason != "stop":
            unparseable += 1
        else:
            labels[label] += 1
    return Verdicts(dict(labels), unparseable, failed)


def read_label(answer: str, labels: Iterable[str]) -> str | None:
    """The label that is the whole of `answer`, case, marks and quotes around it apart."""
    given = " ".join(answer.strip(_EDGES).casefold().split())
    return next((label for label in labels if label == given), None)
