"""Engines say in their own words why they have no answer; the classes are ours."""

import pytest

from megatron_synth.engines import classify_failure


@pytest.mark.parametrize(
    "message",
    [
        # vLLM, offline and as a server
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        # OpenAI's code
        "HTTP 400: {'error': {'code': 'context_length_exceeded'}}",
        # llama.cpp
        "the request exceeds the available context size",
        "input length and max_tokens exceed context window",
    ],
)
def test_a_prompt_that_does_not_fit(message):
    assert classify_failure(message) == "context_too_long"


@pytest.mark.parametrize(
    "message",
    [
        "refused by the endpoint's content filter",
        "HTTP 400: the response was filtered due to Azure's content management policy",
        "Your request was rejected as a result of our safety system",
    ],
)
def test_a_providers_own_filter(message):
    assert classify_failure(message) == "refused_by_engine"


@pytest.mark.parametrize("message", ["503 busy", "", "HTTP 400: temperature must be positive"])
def test_everything_else(message):
    assert classify_failure(message) == "failed"
