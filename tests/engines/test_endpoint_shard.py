"""A shard on an endpoint that has a bad hour: nothing lost, nothing twice, failures by reason."""

from collections import Counter

import pytest
from faulty_server import answer, serving

from megatron_synth.config import RunError
from megatron_synth.corpus import Document
from megatron_synth.engines import (
    EndpointConfig,
    EndpointEngine,
    Request,
    RequestLog,
    Sampling,
)
from megatron_synth.synthesis import Item
from megatron_synth.synthesis.config import FilterConfig, SynthesisConfig
from megatron_synth.synthesis.shard import Shard

ITEMS = 120
WAYS = [
    (429, b"", ("Retry-After", "0.01")),
    (500, b""),
    "cut",
    "half",
    (200, b"garbage"),
    "hang",
    (200, {"choices": []}),
]


class Numbers:
    """A method that asks about each number once (see `contract.Method`)."""

    name = "numbers"
    total = ITEMS

    def items(self, shard, shards):
        return (Item(n, n, str(n), 0, n) for n in range(shard, ITEMS, shards))

    def write(self, item):
        [completion] = yield [Request(f"{item.index:032x}", f"say {item.index}", Sampling())]
        return Document(
            id=str(item.index),
            text=completion.text,
            finish_reason=completion.finish_reason,
            token_counts={"text": 60},
            metadata={} if completion.error is None else {"failure": "failed"},
        )

    def source_text(self, item):
        return ""

    def count_inputs(self):
        return {}


def run(tmp_path, server, tries=4):
    """Run the shard to its end, or raise; its outcomes and its log's keys."""
    config = SynthesisConfig(
        method="sbp",
        tokens=1 << 40,
        max_requests=ITEMS,
        allow_short=True,
        tries=tries,
        filters=FilterConfig(min_tokens=1),
        min_kept_share=0,
    )
    engine = EndpointEngine(
        EndpointConfig(
            url=f"http://127.0.0.1:{server.server_address[1]}/v1",
            model="m",
            concurrency=16,
            timeout_seconds=0.5,
            backoff_seconds=0.01,
        )
    )
    with RequestLog(tmp_path / "requests.log", "run") as log:
        shard = Shard(config, 0, Numbers(), log)
        try:
            shard.run(lambda: engine)
        finally:
            engine.close()
        return list(shard.product()), list(log), log.asked_again


def number(body):
    return int(body["messages"][0]["content"].split()[1])


def said(body):
    words = f"number {number(body)} is said in words that stand once only"
    return 200, answer(body, text=words)


def test_every_request_of_a_bad_hour_ends_once(tmp_path):
    """Up to three passing failures each; every tenth request can never succeed."""

    def script(body, time_):
        n = number(body)
        if n % 10 == 7:
            return 400, {"error": "the context is too long"}
        return WAYS[(n + time_) % len(WAYS)] if time_ <= n % 4 else said(body)

    with serving(script) as server:
        outcomes, keys, again = run(tmp_path, server)
    assert sorted(keys) == sorted(f"{n:032x}" for n in range(ITEMS))
    assert again == 0
    assert [outcome.item.index for outcome in outcomes] == list(range(ITEMS))
    reasons = Counter(outcome.reason for outcome in outcomes)
    assert reasons == {None: ITEMS * 9 // 10, "failed": ITEMS // 10}
    for outcome in outcomes:
        if outcome.reason is None:
            assert f"number {outcome.item.index} is" in outcome.document.text
    assert sum(server.times.values()) == sum(1 if n % 10 == 7 else 1 + n % 4 for n in range(ITEMS))


def test_an_endpoint_that_only_fails_ends_the_step_and_a_good_hour_goes_on(tmp_path):
    def bad_after_forty(body, _):
        return said(body) if number(body) < 40 else (500, b"down")

    with serving(bad_after_forty) as server, pytest.raises(RunError, match=r"in a row.*down"):
        run(tmp_path, server, tries=2)
    with RequestLog(tmp_path / "requests.log", "run") as log:
        answered = len(log)
        recorded = sum(log.read(key).error is not None for key in log)
    assert 0 < answered < ITEMS
    with serving(lambda body, _: said(body)) as server:
        outcomes, keys, _ = run(tmp_path, server)
        asked = sum(server.times.values())
    assert len(keys) == len(set(keys)) == ITEMS
    # A failure counts as the request's own once an answer has come after it.
    reasons = Counter(outcome.reason for outcome in outcomes)
    assert reasons[None] == ITEMS - recorded
    assert reasons["failed"] == recorded
    assert asked == ITEMS - answered
