"""What all prompted methods share: items, questions that are asked again, documents."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from megatron_synth.corpus import Document
from megatron_synth.engines import Completion, Request, Sampling, classify_failure
from megatron_synth.runs import hash_json
from megatron_synth.synthesis.answers import Unparseable
from megatron_synth.synthesis.config import SynthesisConfig
from megatron_synth.synthesis.contract import Item, request_key
from megatron_synth.synthesis.draws import draw
from megatron_synth.synthesis.methods.inputs import Inputs
from megatron_synth.synthesis.seeds import SeedStore
from megatron_synth.tokens import Tokenizer

Value = TypeVar("Value")

FAILED, UNPARSEABLE = "failed", "unparseable"
_MESSAGE = 300  # characters of a failure that are recorded


@dataclass(frozen=True)
class Question(Generic[Value]):
    """One question of an item.

    Attributes:
        prompt: The whole text.
        parse: Makes a value of the answer, or raises `Unparseable`.
        part: Names the question among several of its item.
        system: System message before it.
    """

    prompt: str
    parse: Callable[[str], Value]
    part: str | None = None
    system: str | None = None


@dataclass(frozen=True)
class Answer(Generic[Value]):
    """What became of a question.

    Attributes:
        completions: Of all tries; the last one counts.
        seed: Of the last.
        value: What its parser made of it; None after a failure.
        failure: `failed` or `unparseable`, and
        message: why.
    """

    completions: tuple[Completion, ...]
    seed: int
    value: Value | None = None
    failure: str | None = None
    message: str = ""


@dataclass(frozen=True)
class Setting:
    """What a method is made with.

    Attributes:
        config: The step's settings.
        seeds: The source documents.
        tokenizer: The generator's.
        context: Of the generator, in tokens.
        generator: `name@hash`.
    """

    config: SynthesisConfig
    seeds: SeedStore
    tokenizer: Tokenizer
    context: int
    generator: str


class Asking:
    """Items and documents of a method that asks about source documents (`contract.Method`).

    Item j is generation j mod G of source document j div G: the G prompts of a document follow
    each other, so that an engine computes what they share once. All of them go to one shard.

    Args:
        setting: See `Setting`.
        inputs: The documents as prompts hold them.
        max_tokens: Longest answer.
        prompt: `name@hash` of what is asked, for the provenance.
    """

    def __init__(self, setting: Setting, inputs: Inputs, max_tokens: int, prompt: str) -> None:
        self.name: str = setting.config.method
        self.total: int | None = len(inputs.rows) * setting.config.generations
        self.setting = setting
        self.inputs = inputs
        self._prompt = prompt
        self._max_tokens = max_tokens
        # Somebody else's server ends answers by itself, and need not know this setting of vLLM's.
        foreign = setting.config.engine.kind == "endpoint"
        self._stop_ids = () if foreign else (setting.tokenizer.eos_id,)

    def items(self, shard: int, shards: int) -> Iterator[Item]:
        """See `contract.Method.items`."""
        config, seeds = self.setting.config, self.setting.seeds
        for position in range(shard, len(self.inputs.rows), shards):
            row = int(self.inputs.rows[position])
            name = seeds.name(row)
            first = position * config.generations
            drawn = draw(config.seed, first, config.generations, 1)[1]
            for generation in range(config.generations):
                yield Item(first + generation, row, name, generation, int(drawn[generation]))

    def source_text(self, item: Item) -> str:
        """See `contract.Method.source_text`."""
        assert item.source_row is not None
        return self.setting.seeds.text(item.source_row)

    def count_inputs(self) -> dict[str, int]:
        """See `contract.Method.count_inputs`."""
        return self.inputs.counts()

    def ask(
        self, item: Item, questions: Sequence[Question[Value]]
    ) -> Generator[list[Request], list[Completion], list[Answer[Value]]]:
        """Ask all at once; those whose answers cannot be parsed again, each with another seed."""
        answers: dict[int, Answer[Value]] = {}
        for attempt in range(self.setting.config.tries):
            again = [
                n
                for n in range(len(questions))
                if n not in answers or answers[n].failure == UNPARSEABLE
            ]
            if not again:
                break
            completions = yield [self._request(item, questions[n], attempt) for n in again]
            for n, completion in zip(again, completions, strict=True):
                earlier = answers[n].completions if n in answers else ()
                seed = request_seed(item.seed, questions[n].part, attempt)
                answers[n] = self._read(questions[n], (*earlier, completion), seed)
        return [answers[n] for n in range(len(questions))]

    def document(
        self,
        item: Item,
        text: str,
        answers: Sequence[Answer[Any]],
        metadata: Mapping[str, Any] | None = None,
    ) -> Document:
        """The document of an item, with its provenance; a failure leaves no text.

        Args:
            item: Which.
            text: What the answers make together.
            answers: All that were asked for.
            metadata: What the method adds.
        """
        config = self.setting.config
        completions = [c for answer in answers for c in answer.completions]
        failed = next((answer for answer in answers if answer.failure), None)
        notes: dict[str, Any] = {"request": item.index, "requests": len(completions)}
        if failed is not None:
            text = ""
            notes |= {"failure": failed.failure, "failure_message": failed.message[:_MESSAGE]}
        finished = {c.finish_reason for answer in answers for c in answer.completions[-1:]}
        return Document(
            id=f"{item.source_id}/{self.name}-{config.round}-{item.generation}",
            text=text,
            source_id=item.source_id,
            method=self.name,
            generation=item.generation,
            round=config.round,
            generator=self.setting.generator,
            prompt=self._prompt,
            seed=answers[0].seed if len(answers) == 1 else item.seed,
            sampling={
                "temperature": config.temperature,
                "top_p": config.top_p,
                "max_tokens": self._max_tokens,
            },
            finish_reason="error" if failed else "length" if "length" in finished else "stop",
            token_counts={
                "prompt": sum(c.prompt_tokens for c in completions),
                "output": sum(c.output_tokens for c in completions),
                "text": len(self.setting.tokenizer.encode(text)),
            },
            metadata={**notes, **(metadata or {})},
        )

    def _request(self, item: Item, question: Question[Value], attempt: int) -> Request:
        sampling = Sampling(
            temperature=self.setting.config.temperature,
            top_p=self.setting.config.top_p,
            max_tokens=self._max_tokens,
            seed=request_seed(item.seed, question.part, attempt),
            stop_ids=self._stop_ids,
        )
        key = request_key(
            document=item.source_id,
            method=self.name,
            generation=item.generation,
            prompt=question.prompt,
            sampling=sampling,
            generator=self.setting.generator,
            part=question.part,
            attempt=attempt,
            system=question.system,
        )
        return Request(key, question.prompt, sampling, question.system)

    def _read(
        self, question: Question[Value], completions: tuple[Completion, ...], seed: int
    ) -> Answer[Value]:
        last = completions[-1]
        if last.error is not None:
            failure = classify_failure(last.error)
            return Answer(completions, seed, failure=failure, message=last.error)
        text = last.text or self.setting.tokenizer.decode(last.token_ids)
        try:
            return Answer(completions, seed, question.parse(text))
        except Unparseable as reason:
            return Answer(completions, seed, failure=UNPARSEABLE, message=str(reason))


def request_seed(seed: int, part: str | None, attempt: int) -> int:
    """Sampling seed of one request of an item, in [0, 2^63); the first of a kind has the item's."""
    if part is None and attempt == 0:
        return seed
    return choice_of(seed, [part, attempt], 1 << 63)


def choice_of(seed: int, what: Any, choices: int) -> int:
    """A number in [0, choices), at most 2^63, that depends on the seed and on `what` is drawn."""
    return int(hash_json([seed, what])[:16], 16) % choices
