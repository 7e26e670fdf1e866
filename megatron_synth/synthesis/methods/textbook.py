"""A textbook from a document: its plan, then each chapter from the plan alone (METHODS 1).

Demystifying A.1.2: ten chapters for one of four audiences, with exercises and their answers.
"""

from megatron_synth.config import ConfigError
from megatron_synth.synthesis.answers import FORMS, Outline, format_outline, read_outline
from megatron_synth.synthesis.contract import Item, Writing
from megatron_synth.synthesis.methods.asking import Answer, Asking, Question, Setting, choice_of
from megatron_synth.synthesis.methods.inputs import Inputs, input_limit, longest_answer
from megatron_synth.synthesis.prompts import Prompt

_READERS = {
    "grade school": "children in grade school",
    "college": "college students",
    "experts": "experts in the field",
    "general public": "the general public",
}


class Textbook(Asking):
    """A book for one document and generation; the item's seed draws whom it is for.

    A chapter without its exercises or answers is asked for again alone; a book with a chapter
    that never comes is a failure. The book's `metadata` has its `audience` and `title`.

    Args:
        setting: See `Setting`.
        outline: Prompt of step 1, with the fields `text` and `audience`.
        chapter: Prompt of step 2, with the fields `audience`, `outline` and `chapter`.

    Raises:
        ConfigError: The context has no room, or no document can be used.
    """

    def __init__(self, setting: Setting, outline: Prompt, chapter: Prompt) -> None:
        config, tokenizer = setting.config, setting.tokenizer
        if outline.answer != "outline":
            raise ConfigError(
                f"the prompt {outline.name} asks for the form {outline.answer!r}",
                fix="A textbook's plan must have the form outline.",
            )
        # A chapter's prompt holds the plan, which is itself an answer: a third of the context
        # each.
        answer = longest_answer(config, setting.context, share=3)
        sizes = [len(tokenizer.encode(prompt.wording)) for prompt in (outline, chapter)]
        limit = input_limit(config, setting.context, sizes[0], answer)
        input_limit(config, setting.context, sizes[1], 2 * answer)
        assert config.long_input is not None
        if config.long_input == "chunk":
            raise ConfigError(
                "a textbook is planned from one text",
                where="synthesis.long_input",
                fix="Choose cut or skip.",
            )
        inputs = Inputs(config.long_input, limit, setting.seeds, tokenizer)
        super().__init__(setting, inputs, answer, f"{outline.identity}+{chapter.identity}")
        self._outline = outline
        self._chapter = chapter

    def write(self, item: Item) -> Writing:
        """See `contract.Method.write`: the plan, then all chapters at once."""
        assert item.source_row is not None
        audiences = self.setting.config.audiences
        audience = audiences[choice_of(item.seed, "audience", len(audiences))]
        reader = _READERS[audience]
        [text] = self.inputs.texts(item.source_row)
        asked = self._outline.fill({"text": text, "audience": reader})
        question = Question(asked, read_outline, "outline", self._outline.system)
        [plan] = yield from self.ask(item, [question])
        metadata: dict[str, str] = {"audience": audience}
        if plan.value is None:
            return self.document(item, "", [plan], metadata)
        questions = [
            Question(
                self._chapter.fill(
                    {
                        "audience": reader,
                        "outline": format_outline(plan.value),
                        "chapter": f"Chapter {number}: {title}",
                    }
                ),
                FORMS[self._chapter.answer],
                f"chapter {number}",
                self._chapter.system,
            )
            for number, title in enumerate(plan.value.chapters, 1)
        ]
        chapters = yield from self.ask(item, questions)
        metadata["title"] = plan.value.title
        book = _bind(plan.value, chapters)
        return self.document(item, book, [plan, *chapters], metadata)


def _bind(plan: Outline, chapters: list[Answer[str]]) -> str:
    """The text of the book: title, introduction, and each chapter under its name."""
    parts = [plan.title, *([plan.introduction] if plan.introduction else [])]
    for number, (named, chapter) in enumerate(zip(plan.chapters, chapters, strict=True), 1):
        title = named.partition(" - ")[0]
        parts += [f"Chapter {number}: {title}", chapter.value or ""]
    return "\n\n".join(parts)
