"""One prompt, one form of answer, one document: rephrasings and structured forms (METHODS 1)."""

from collections.abc import Callable

from megatron_synth.synthesis.contract import Item, Writing
from megatron_synth.synthesis.methods.asking import Asking, Question, Setting
from megatron_synth.synthesis.methods.inputs import Inputs, input_limit, longest_answer
from megatron_synth.synthesis.prompts import Prompt


class Prompted(Asking):
    """The prompt holds the source document; the parsed answer is the new one.

    A document that is asked about in pieces (`long_input: chunk`) gives one document as well: the
    pieces' answers, an empty line between them.

    Args:
        setting: See `Setting`.
        prompt: With the field `text`.
        parse: From an answer to the document's text.

    Raises:
        ConfigError: The context has no room, or no document can be used.
    """

    def __init__(self, setting: Setting, prompt: Prompt, parse: Callable[[str], str]) -> None:
        config, tokenizer = setting.config, setting.tokenizer
        answer = longest_answer(config, setting.context)
        limit = input_limit(config, setting.context, len(tokenizer.encode(prompt.wording)), answer)
        assert config.long_input is not None
        inputs = Inputs(config.long_input, limit, setting.seeds, tokenizer)
        super().__init__(setting, inputs, answer, prompt.identity)
        self._asked = prompt
        self._parse = parse

    def write(self, item: Item) -> Writing:
        """See `contract.Method.write`."""
        assert item.source_row is not None
        texts = self.inputs.texts(item.source_row)
        questions = [
            Question(
                self._asked.fill({"text": text}),
                self._parse,
                None if len(texts) == 1 else f"piece {number}",
                self._asked.system,
            )
            for number, text in enumerate(texts)
        ]
        answers = yield from self.ask(item, questions)
        return self.document(item, "\n\n".join(a.value or "" for a in answers), answers)
