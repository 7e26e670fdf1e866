"""Thoughts that lead from what stands before a point of a document to what follows (METHODS 1).

Megadocs 4.2: a document is cut into G + 1 token-equal pieces; at each of the G points between
them, the prompt holds all that stands before and all that follows.
"""

from functools import lru_cache

from megatron_synth.synthesis.answers import FORMS
from megatron_synth.synthesis.contract import Item, Writing
from megatron_synth.synthesis.methods.asking import FAILED, Answer, Asking, Question, Setting
from megatron_synth.synthesis.methods.inputs import Inputs, input_limit, longest_answer
from megatron_synth.synthesis.pieces import CUT, cut_points
from megatron_synth.synthesis.prompts import Prompt


class LatentThoughts(Asking):
    """A rationale for each split point; its generation is the point's number.

    `metadata[CUT]` is the character of the source at which the rationale stands, and
    `metadata["splits"]` is G: `stretch` puts the rationales back there.

    Args:
        setting: See `Setting`.
        prompt: With the fields `prefix` and `suffix`.

    Raises:
        ConfigError: The context has no room, or no document can be used.
    """

    def __init__(self, setting: Setting, prompt: Prompt) -> None:
        config, tokenizer = setting.config, setting.tokenizer
        answer = longest_answer(config, setting.context)
        limit = input_limit(config, setting.context, len(tokenizer.encode(prompt.wording)), answer)
        pieces = config.generations + 1
        inputs = Inputs("skip", limit, setting.seeds, tokenizer, least=pieces)
        super().__init__(setting, inputs, answer, prompt.identity)
        self._asked = prompt
        # The G items of a document follow each other.
        self._cuts = lru_cache(maxsize=256)(
            lambda row: cut_points(setting.seeds.text(row), tokenizer, pieces)
        )

    def write(self, item: Item) -> Writing:
        """See `contract.Method.write`."""
        cuts = self._cuts(item.source_row)
        if cuts is None:  # more tokens than pieces, but fewer characters
            short = Answer[str]((), item.seed, failure=FAILED, message="too short to be split")
            return self.document(item, "", [short])
        cut = cuts[item.generation]
        text = self.source_text(item)
        asked = self._asked.fill({"prefix": text[:cut], "suffix": text[cut:]})
        question = Question(asked, FORMS[self._asked.answer], system=self._asked.system)
        answers = yield from self.ask(item, [question])
        metadata = {CUT: cut, "splits": len(cuts)}
        return self.document(item, answers[0].value or "", answers, metadata)
