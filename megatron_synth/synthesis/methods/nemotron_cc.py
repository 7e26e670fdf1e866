"""NeMo Curator's own Nemotron-CC prompts, asked through our contract (METHODS 1).

The prompts are read out of the installed `nemo_curator` (Apache-2.0) when the step runs, so they
are Curator's of that version. Ours are what its stages lack: answers that are committed one by
one, seeds, and parsers that say why they refuse an answer. One thing differs from its stages: of
`diverse_qa` the document holds the pairs alone, all of them, in their order, without the source
text that Curator puts before a random choice of them. The system prompt goes as a system message;
where a chat form has no place for one, before the user's text (`engines.chat`).
"""

from collections.abc import Callable

from megatron_synth.config import RunError
from megatron_synth.synthesis.answers import Unparseable, question_answers, text
from megatron_synth.synthesis.prompts import Prompt

_DOCUMENT = "{document}"
_SYSTEM = "NEMOTRON_CC_SYSTEM_PROMPT"
_NAMES = {
    "diverse_qa": ("DIVERSE_QA_PROMPT_TEMPLATE", _SYSTEM),
    "distill": ("DISTILL_PROMPT_TEMPLATE", "NEMOTRON_CC_DISTILL_SYSTEM_PROMPT"),
    "extract_knowledge": ("EXTRACT_KNOWLEDGE_PROMPT_TEMPLATE", _SYSTEM),
    "knowledge_list": ("KNOWLEDGE_LIST_PROMPT_TEMPLATE", _SYSTEM),
    "wikipedia": ("WIKIPEDIA_REPHRASING_PROMPT_TEMPLATE", _SYSTEM),
}


def nemotron_prompt(variant: str) -> Prompt:
    """The prompt of a Nemotron-CC stage, as `nemo_curator` has it.

    Args:
        variant: `diverse_qa`, `distill`, `extract_knowledge`, `knowledge_list` or `wikipedia`.

    Raises:
        RunError: This version of `nemo_curator` has no such prompt.
    """
    from nemo_curator.stages.synthetic.nemotron_cc import prompts

    template_name, system_name = _NAMES[variant]
    template = getattr(prompts, template_name, "")
    system = getattr(prompts, system_name, "")
    if template.count(_DOCUMENT) != 1 or not system:
        raise RunError(
            f"the installed nemo_curator has no prompt {template_name} with one {_DOCUMENT}",
            fix="Install the version of nemo-curator that requirements/ pins.",
        )
    body = template.replace(_DOCUMENT, "{{text}}")
    return Prompt(f"nemotron_cc_{variant}", 2, variant, body, frozenset({"text"}), system)


def _after_announcement(answer: str) -> str:
    """The text after the line that announces it, which `wikipedia` asks for."""
    lines = text(answer).split("\n")
    announced = len(lines) > 1 and lines[0].rstrip(" *").endswith(":")
    return text("\n".join(lines[1:] if announced else lines))


def _list_items(answer: str) -> str:
    """A line for each item of a list; what stands before the first is left out."""
    items: list[str] = []
    for line in text(answer).split("\n"):
        bare = line.strip()
        if bare[:2] in ("- ", "* "):
            items.append(bare[2:].strip())
        elif items and bare:
            items[-1] += f" {bare}"
    if not any(items):
        raise Unparseable("no list")
    return "\n".join(item for item in items if item)


PARSERS: dict[str, Callable[[str], str]] = {
    "diverse_qa": question_answers,
    "distill": text,
    "extract_knowledge": text,
    "knowledge_list": _list_items,
    "wikipedia": _after_announcement,
}
"""From an answer to the text of a document."""
