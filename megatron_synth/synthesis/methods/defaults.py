"""What each method's sampling and sizes are where the settings do not say (METHODS 1)."""

from dataclasses import dataclass
from typing import Literal, get_args

MethodName = Literal[
    "sbp",
    "rephrase_hq",
    "rephrase_qa",
    "rephrase_faithful",
    "reformat",
    "faq",
    "table",
    "math",
    "tutorial",
    "textbook",
    "latent_thoughts",
    "nemotron_cc",
    "self_distill",
]
METHODS: tuple[str, ...] = get_args(MethodName)

LongInput = Literal["cut", "chunk", "skip"]

PROMPTLESS = frozenset({"sbp", "self_distill"})
"""Methods whose prompt is token ids; they draw without end, so the settings must say how much."""


@dataclass(frozen=True)
class Defaults:
    """Settings of a method.

    Attributes:
        temperature: Of sampling,
        top_p: and the share of probability kept at each token.
        max_output_tokens: Longest answer; None leaves it to the model's context.
        max_input_tokens: Longest source text in a prompt; None leaves it to the context.
        target_tokens: What an answer should have on average, where the paper or prompt says it.
        long_input: What becomes of a longer source; None where the method has no such choice.
        repeats_source: Answers take over runs of words, so that guessing them from the prompt pays.
    """

    temperature: float
    top_p: float
    max_output_tokens: int | None
    max_input_tokens: int | None
    target_tokens: int | None = None
    long_input: LongInput | None = "cut"
    repeats_source: bool = False


# SynPro 3.3; the structured forms share its setting.
_SYNPRO = Defaults(1.0, 0.9, 2048, 2048, repeats_source=True)
DEFAULTS: dict[str, Defaults] = {
    "sbp": Defaults(1.0, 0.9, None, None, long_input=None),  # SBP A.2
    "rephrase_hq": Defaults(
        0.7, 0.95, 1024, 2048, 550, repeats_source=True
    ),  # demystifying A.1.2, B
    "rephrase_qa": Defaults(0.7, 0.95, 1024, 2048, 550, repeats_source=True),
    "rephrase_faithful": _SYNPRO,
    "reformat": _SYNPRO,
    "faq": _SYNPRO,
    "table": _SYNPRO,
    "math": _SYNPRO,
    "tutorial": _SYNPRO,
    # Demystifying A.1.2: about 450 tokens a chapter, 5,000 a book; the limit is for one answer.
    "textbook": Defaults(0.7, 0.95, 1024, 2048, 5000),
    # Megadocs 4.2: whole prefix and suffix, so that cutting would not be the method.
    "latent_thoughts": Defaults(1.0, 1.0, 512, None, 424, "skip"),
    # Our choice: Curator's stages name none; its default (temperature 0, one seed) repeats itself.
    "nemotron_cc": Defaults(0.5, 0.9, 2048, 2048, repeats_source=True),
    "self_distill": Defaults(1.0, 1.0, None, None, long_input=None),  # megadocs 5
}
