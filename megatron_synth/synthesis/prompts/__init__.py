"""Prompts as files beside this one: Markdown, with what they are in front.

    ---
    name: rephrase_hq
    version: 1
    answer: text
    ---
    … {{text}} …

`answer` names the form of the answer and so its parser (`answers.FORMS`). The body names its
fields in double braces; `text` is the source document. Instructions stand before the document, so
that an engine can keep their keys and values for all requests (prefix caching). The wording is
ours, not the papers'; a file of a user's own takes the place of any of these.
"""

from megatron_synth.synthesis.prompts.loading import (
    Prompt,
    load_prompt,
    prompt_names,
    read_prompt,
)

__all__ = ["Prompt", "load_prompt", "prompt_names", "read_prompt"]
