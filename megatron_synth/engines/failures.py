"""Why a request has no answer, by class; engines say it in words of their own."""

import re
from typing import Literal

FailureClass = Literal["context_too_long", "refused_by_engine", "failed"]

_TOO_LONG = re.compile(
    r"context[ _](?:length|window|size)|max(?:imum)?[ _](?:context|model|input|sequence)|"
    r"context (?:is )?too long|prompt is too long|too many (?:input )?tokens|max_model_len",
    re.IGNORECASE,
)
"""vLLM, its server, OpenAI (`context_length_exceeded`), Anthropic, llama.cpp, TGI."""
_REFUSED = re.compile(
    r"content[ _-]?(?:filter|policy|management)|safety (?:system|filter)|moderation",
    re.IGNORECASE,
)
"""What a provider's own filter answers, in place of the model."""


def classify_failure(error: str) -> FailureClass:
    """The class of a request that failed for good, from the message of its engine."""
    if _TOO_LONG.search(error):
        return "context_too_long"
    return "refused_by_engine" if _REFUSED.search(error) else "failed"
