"""An endpoint that answers, fails, hangs, cuts connections and talks nonsense: a real server."""

import socket
import time
from contextlib import contextmanager

import pytest
from faulty_server import answer, serving

from megatron_synth.config import ConfigError
from megatron_synth.engines import Request, RequestLog, Sampling, complete
from megatron_synth.engines.endpoint import EndpointConfig, EndpointEngine

SECRET = "sk-a-secret-key"


@contextmanager
def asking(server, **settings):
    settings = {"backoff_seconds": 0.01, "concurrency": 4, **settings}
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    engine = EndpointEngine(EndpointConfig(url=url, model="m", **settings))
    try:
        yield engine
    finally:
        engine.close()


def request(number, prompt=None, **sampling):
    return Request(f"{number:04x}", prompt or f"say {number}", Sampling(**sampling))


def only(completions):
    (completion,) = completions
    return completion


def test_a_text_prompt_is_one_user_message_with_all_sampling_settings():
    with serving(lambda body, _: (200, answer(body))) as server, asking(server) as engine:
        sampled = request(1, temperature=0.7, top_p=0.9, max_tokens=7, seed=11)
        completion = only(complete(engine, [sampled]))
    assert completion.text == "re: say 1"
    assert (completion.finish_reason, completion.error) == ("stop", None)
    assert (completion.prompt_tokens, completion.output_tokens) == (3, 5)
    assert server.asked == [
        {
            "path": "/v1/chat/completions",
            "authorization": None,
            "model": "m",
            "temperature": 0.7,
            "top_p": 0.9,
            "max_tokens": 7,
            "seed": 11,
            "messages": [{"role": "user", "content": "say 1"}],
        }
    ]


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        (
            {},
            {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]},
        ),
        ({"system_role": False}, {"messages": [{"role": "user", "content": "S\n\nU"}]}),
        ({"chat": False}, {"prompt": "S\n\nU"}),
    ],
)
def test_a_system_message_goes_as_one_unless_the_server_takes_none(settings, sent):
    with (
        serving(lambda body, _: (200, answer(body))) as server,
        asking(server, **settings) as engine,
    ):
        asked = Request("00", "U", Sampling(), system="S")
        assert only(complete(engine, [asked])).error is None
    [body] = server.asked
    assert {name: body[name] for name in ("messages", "prompt") if name in body} == sent


@pytest.mark.parametrize("prompt", ["plain text", [5, 6, 7]])
def test_plain_text_and_token_ids_go_as_they_are(prompt):
    with (
        serving(lambda body, _: (200, answer(body))) as server,
        asking(server, chat=False) as engine,
    ):
        completion = only(complete(engine, [request(1, prompt, stop_ids=(2,))]))
    assert completion.text == f"re: {prompt}"
    assert server.asked[0]["path"] == "/v1/completions"
    assert server.asked[0]["prompt"] == prompt
    assert server.asked[0]["stop_token_ids"] == [2]


def test_as_many_requests_run_at_once_as_the_concurrency_says():
    def script(body, _):
        time.sleep(0.03)
        return 200, answer(body)

    with serving(script) as server, asking(server, concurrency=5) as engine:
        answers = list(complete(engine, (request(n) for n in range(40))))
    assert sorted(a.text for a in answers) == sorted(f"re: say {n}" for n in range(40))
    assert server.most_running == 5


def test_an_answer_cut_at_its_length_says_so():
    with (
        serving(lambda body, _: (200, answer(body, reason="length"))) as server,
        asking(server) as engine,
    ):
        assert only(complete(engine, [request(1)])).finish_reason == "length"


@pytest.mark.parametrize(
    "said",
    [
        (429, {"error": "slow down"}),
        (500, b"oops"),
        (503, b""),
        "cut",
        "half",
        (200, b"<html>a proxy's page</html>"),
        (200, b"\xff\xfe{}"),
        (200, b"not gzip at all", ("Content-Encoding", "gzip")),
        (200, b"[" * 100_000),
        (200, {"choices": []}),
        (200, [1, 2]),
        (200, {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}),
        (200, {"choices": [{"text": "half", "finish_reason": None}]}),
        (200, {"choices": [{"text": "a", "finish_reason": "stop"}], "usage": ["odd"]}),
        (200, {"choices": [{"text": "a", "finish_reason": "stop", "token_ids": ["odd"]}]}),
    ],
    ids=lambda said: str(said)[:60],
)
def test_a_passing_failure_comes_back_as_such_and_the_next_try_succeeds(said):
    def script(body, time_):
        return said if time_ == 1 else (200, answer(body))

    with serving(script) as server, asking(server) as engine:
        failed = only(complete(engine, [request(1)]))
        assert failed.transient
        assert failed.finish_reason == "error"
        assert failed.error
        assert only(complete(engine, [request(1)])).text == "re: say 1"


@pytest.mark.parametrize("said", ["hang", "drip"])
def test_a_server_that_hangs_is_left_after_the_timeout(said):
    with (
        serving(lambda body, _: said) as server,
        asking(server, timeout_seconds=0.2) as engine,
    ):
        failed = only(complete(engine, [request(1)]))
    assert failed.transient
    assert "Timeout" in failed.error


def test_a_proxy_of_the_environment_is_not_asked_for_a_server_of_this_machine(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(lambda body, _: (200, answer(body))) as server, asking(server) as engine:
        assert only(complete(engine, [request(1)])).text == "re: say 1"


def test_no_server_is_a_passing_failure():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        engine = EndpointEngine(EndpointConfig(url=url, model="m"))
        try:
            failed = only(complete(engine, [request(1)]))
        finally:
            engine.close()
    assert failed.transient
    assert "ConnectError" in failed.error


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_can_never_succeed_is_a_permanent_failure(status):
    with (
        serving(lambda body, _: (status, {"error": "the context is too long"})) as server,
        asking(server) as engine,
    ):
        failed = only(complete(engine, [request(1)]))
    assert not failed.transient
    assert "the context is too long" in failed.error


def test_a_content_filter_is_a_permanent_failure():
    with (
        serving(lambda body, _: (200, answer(body, reason="content_filter"))) as server,
        asking(server) as engine,
    ):
        failed = only(complete(engine, [request(1)]))
    assert not failed.transient
    assert "content filter" in failed.error


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_no_request_can_outlive_ends_the_engine_with_one_message(status):
    with (
        serving(lambda body, _: (status, b"no")) as server,
        asking(server) as engine,
        pytest.raises(ConfigError, match=f"status {status}"),
    ):
        list(complete(engine, [request(1)]))


def test_the_wait_before_another_try_doubles_up_to_its_cap():
    with (
        serving(lambda body, _: (500, b"")) as server,
        asking(server, backoff_seconds=0.1, backoff_max_seconds=0.15) as engine,
    ):
        for _ in range(4):
            only(complete(engine, [request(1)]))
    first, second, third = (
        b - a for a, b in zip(server.arrivals, server.arrivals[1:], strict=False)
    )
    assert first >= 0.05
    assert second >= 0.1
    assert third >= 0.15  # half of 0.4 is over the cap already


def test_a_server_that_asks_for_a_wait_gets_it():
    def script(body, time_):
        return (429, b"", ("Retry-After", "0.4")) if time_ == 1 else (200, answer(body))

    with serving(script) as server, asking(server) as engine:
        only(complete(engine, [request(1)]))
        only(complete(engine, [request(1)]))
    assert server.arrivals[1] - server.arrivals[0] >= 0.4


def test_a_wait_given_as_a_date_is_replaced_by_our_own():
    date = ("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT")

    def script(body, time_):
        return (503, b"", date) if time_ == 1 else (200, answer(body))

    with serving(script) as server, asking(server) as engine:
        only(complete(engine, [request(1)]))
        assert only(complete(engine, [request(1)])).error is None


def test_the_key_is_sent_and_never_shown(monkeypatch, caplog):
    monkeypatch.setenv("SOME_KEY", SECRET)
    with (
        serving(lambda body, _: (500, f"your key {SECRET} is odd".encode())) as server,
        asking(server, api_key_env="SOME_KEY") as engine,
        caplog.at_level(0),
    ):
        failed = only(complete(engine, [request(1)]))
    assert server.asked[0]["authorization"] == f"Bearer {SECRET}"
    assert "your key *** is odd" in failed.error
    assert SECRET not in caplog.text


def test_a_key_that_is_not_set_is_said_before_anything_is_asked(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ConfigError, match="SOME_KEY is not set"):
        EndpointEngine(
            EndpointConfig(url="http://127.0.0.1:1/v1", model="m", api_key_env="SOME_KEY")
        )


def test_cancelled_requests_leave_nothing_behind():
    def script(body, _):
        return "hang" if body["messages"][0]["content"] == "say 1" else (200, answer(body))

    with serving(script) as server, asking(server) as engine:
        engine.submit(request(1))
        engine.cancel()
        assert engine.step() == []
        assert only(complete(engine, [request(2)])).text == "re: say 2"


def test_a_bad_hour_loses_nothing_and_answers_nothing_twice(tmp_path):
    """Every way to fail, in turn, on 120 requests; each is asked until it is answered."""
    garbage = (200, b"garbage")
    ways = [(429, b"", ("Retry-After", "0.01")), (500, b""), "cut", garbage, "hang", "half", "drip"]

    def script(body, time_):
        number = int(body["messages"][0]["content"].split()[1])
        if time_ <= number % 4:
            return ways[(number + time_) % len(ways)]
        return 200, answer(body)

    asks = {f"{n:04x}": request(n) for n in range(120)}
    with (
        serving(script) as server,
        asking(server, concurrency=16, timeout_seconds=0.5) as engine,
        RequestLog(tmp_path / "requests.log", "run") as log,
    ):
        open_ = dict(asks)
        while open_:
            for completion in complete(engine, list(open_.values())):
                if completion.error is None:
                    log.append(completion)
                    del open_[completion.key]
                else:
                    assert completion.transient
            log.commit()
        assert {key: log.read(key).text for key in log} == {
            key: f"re: {ask.prompt}" for key, ask in asks.items()
        }
    assert sum(server.times.values()) == sum(1 + n % 4 for n in range(120))
