"""An engine behind a request log: each answer is asked for once, whatever ends the run."""

import pytest

from megatron_synth.config import RunError
from megatron_synth.engines import Completion, Request, RequestLog, Sampling, complete
from megatron_synth.engines.logged import LoggedEngine


class Counting:
    """Answers each request with its prompt; dies after so many answers."""

    concurrency = 4

    def __init__(self, die_after=None, failing=()):
        self.asked = []
        self._running = []
        self._left = die_after
        self._failing = failing

    def submit(self, request):
        self.asked.append(request.key)
        self._running.append(request)

    def step(self):
        assert self._running
        request = self._running.pop(0)
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise RunError("died")
        if request.key in self._failing:
            return [Completion.failed(request.key, "busy", transient=True)]
        return [Completion(request.key, text=request.prompt)]

    def cancel(self):
        self._running = []

    def close(self):
        pass


def requests(count):
    return [Request(f"{n:04x}", f"prompt {n}", Sampling()) for n in range(count)]


def answers(engine, log, count=30):
    logged = LoggedEngine(engine, log)
    return {c.key: c.text for c in complete(logged, requests(count))}


def test_a_second_run_asks_only_for_what_had_no_answer(tmp_path):
    first, second, third = Counting(die_after=11), Counting(), Counting()
    with RequestLog(tmp_path / "log", "run") as log, pytest.raises(RunError, match="died"):
        answers(first, log)
    with RequestLog(tmp_path / "log", "run") as log:
        found = answers(second, log)
        assert found == {r.key: r.prompt for r in requests(30)}
        assert len(second.asked) == 30 - 11
        assert log.asked_again <= first.concurrency
        assert answers(third, log) == found
    assert third.asked == []


def test_an_answer_comes_back_only_after_it_is_committed(tmp_path):
    with RequestLog(tmp_path / "log", "run", group=1000, seconds=1000) as log:
        logged = LoggedEngine(Counting(), log)
        for request in requests(4):
            logged.submit(request)
        steps = [logged.step() for _ in range(4)]
        assert [len(found) for found in steps] == [0, 0, 0, 4]
        assert log.waiting == 0


def test_a_failure_is_handed_on_and_asked_again_in_the_next_run(tmp_path):
    with RequestLog(tmp_path / "log", "run") as log:
        logged = LoggedEngine(Counting(failing={"0003"}), log)
        found = {c.key: c for c in complete(logged, requests(6))}
        assert found["0003"].transient
        assert len(log) == 5
    again = Counting()
    with RequestLog(tmp_path / "log", "run") as log:
        assert answers(again, log, 6)["0003"] == "prompt 3"
    assert again.asked == ["0003"]
