"""One shard: exactly once, a product that is a function of the log, and clear early stops."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import ScriptedEngine, honest_text

from megatron_synth.config import RunError
from megatron_synth.engines import Completion, RequestLog
from megatron_synth.synthesis import SynthesisConfig
from megatron_synth.synthesis.shard import Shard, share_of
from megatron_synth.synthesis.state import read_state

CONFIG = SynthesisConfig(tokens=8000, seed=2)


class Step:
    """A shard that can be run again and again on the same log."""

    def __init__(self, make_sbp, folder: Path, config: SynthesisConfig = CONFIG, number: int = 0):
        self.method = make_sbp(config)
        self.config = config
        self.number = number
        self.path = folder / "requests.log"
        self.state_path = folder / "state.json"

    def run(self, engine: ScriptedEngine | None) -> list[tuple[str, str | None]]:
        """The product: (text, drop reason) in order."""

        def start() -> ScriptedEngine:
            assert engine is not None, "the log was complete; no engine is needed"
            return engine

        with RequestLog(self.path, "run", group=3, seconds=0.01) as log:
            shard = Shard(self.config, self.number, self.method, log, self.state_path)
            self.state = shard.run(start)
            self.asked_again = log.asked_again
            self.answers = {key: log.read(key) for key in log}
            return [(o.document.text, o.reason) for o in shard.product()]


def test_the_target_is_reached_and_hardly_passed(make_sbp, tmp_path, engine):
    step = Step(make_sbp, tmp_path)
    product = step.run(engine)
    tokens = [len(engine.tokenizer.encode(text)) + 1 for text, reason in product if not reason]
    assert sum(tokens) >= CONFIG.tokens
    assert sum(tokens[:-1]) < CONFIG.tokens
    assert len(step.answers) - len(product) < engine.concurrency
    assert len(engine.asked) == len(set(engine.asked))


def test_a_finished_log_gives_the_same_product_without_an_engine(make_sbp, tmp_path, engine):
    step = Step(make_sbp, tmp_path)
    first = step.run(engine)
    assert step.run(None) == first


@given(deaths=st.lists(st.integers(0, 60), max_size=5), cut=st.randoms(use_true_random=False))
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # it holds no state
)
def test_killed_anywhere_every_key_is_answered_once_and_texts_stay(
    make_sbp, tokenizer, tmp_path_factory, deaths, cut: random.Random
):
    """Each try ends in the middle, by a dead engine and a torn file; each answers differently."""
    step = Step(make_sbp, tmp_path_factory.mktemp("kill"))
    committed: dict[str, Completion] = {}
    bound = 0
    for attempt, death in enumerate(deaths):

        def script(request, attempt=attempt):
            return honest_text(f"{attempt} {request.key}")

        engine = ScriptedEngine(tokenizer, script, die_after=death)
        try:
            step.run(engine)
        except RunError:
            bound += engine.concurrency
        data = step.path.read_bytes()
        torn = b"0123456789abcdef A " + b"x" * cut.randint(0, 30)
        step.path.write_bytes(data + torn)
        with RequestLog(step.path, "run") as log:
            found = {key: log.read(key) for key in log}
            assert committed.items() <= found.items()
            committed = found
    last = ScriptedEngine(tokenizer)
    product = step.run(last)
    assert committed.items() <= step.answers.items()
    assert not set(committed) & set(last.asked)
    assert step.asked_again <= bound
    assert step.run(None) == product
    texts = [text for text, _ in product]
    assert len(set(texts)) == len(texts)


def test_shards_together_make_the_target(make_sbp, tmp_path, tokenizer):
    config = CONFIG.model_copy(update={"shards": 3})
    keys: list[str] = []
    tokens = 0
    for number in range(3):
        folder = tmp_path / str(number)
        step = Step(make_sbp, folder, config, number)
        folder.mkdir()
        product = step.run(ScriptedEngine(tokenizer))
        tokens += sum(len(tokenizer.encode(text)) + 1 for text, reason in product if not reason)
        keys += step.answers
    assert len(set(keys)) == len(keys)
    assert tokens >= config.tokens
    assert [share_of(10, n, 3) for n in range(3)] == [4, 3, 3]


def test_dropped_documents_are_counted_and_made_up_for(make_sbp, tmp_path, tokenizer):
    def script(request):
        return "short" if int(request.key, 16) % 2 else honest_text(request.key)

    step = Step(make_sbp, tmp_path)
    product = step.run(ScriptedEngine(tokenizer, script))
    reasons = [reason for _, reason in product]
    assert set(reasons) == {None, "too_short"}
    kept = sum(len(tokenizer.encode(text)) + 1 for text, reason in product if not reason)
    assert kept >= CONFIG.tokens
    state = read_state(step.state_path)
    assert state.dropped["too_short"] >= reasons.count("too_short")
    assert state.settled == len(step.answers)
    assert state.kept_tokens >= CONFIG.tokens


def test_filters_that_drop_nearly_everything_stop_the_step_with_counts(
    make_sbp, tmp_path, tokenizer
):
    step = Step(make_sbp, tmp_path, CONFIG.model_copy(update={"min_kept_after": 40}))
    engine = ScriptedEngine(tokenizer, lambda request: "too few words")
    with pytest.raises(RunError, match=r"keep 0 of 40 documents.*40 too_short"):
        step.run(engine)
    assert len(engine.asked) <= 40 + engine.concurrency


def test_the_cap_on_requests_is_hard(make_sbp, tmp_path, tokenizer):
    config = CONFIG.model_copy(update={"max_requests": 15})
    engine = ScriptedEngine(tokenizer)
    with pytest.raises(RunError, match="15 requests, the most that max_requests allows"):
        Step(make_sbp, tmp_path, config).run(engine)
    assert len(engine.asked) == 15
    short = config.model_copy(update={"allow_short": True})
    assert len(Step(make_sbp, tmp_path, short).run(None)) == 15


def failure(request, *, transient):
    return Completion.failed(request.key, "503 busy", transient=transient)


@pytest.mark.parametrize("transient", [True, False])
def test_an_engine_that_only_fails_stops_the_step_and_nothing_is_recorded(
    make_sbp, tmp_path, tokenizer, transient
):
    step = Step(make_sbp, tmp_path)
    broken = ScriptedEngine(tokenizer, lambda r: failure(r, transient=transient))
    with pytest.raises(RunError, match="32 requests in a row, after 0 answers: 32 times 503 busy"):
        step.run(broken)
    with RequestLog(step.path, "run") as log:
        assert len(log) == 0
    mended = ScriptedEngine(tokenizer)
    product = step.run(mended)
    assert all(reason is None for _, reason in product)


def test_an_engine_that_breaks_in_the_middle_poisons_nothing(make_sbp, tmp_path, tokenizer):
    answered = []

    def script(request):
        if len(answered) >= 20:
            return failure(request, transient=False)
        answered.append(request.key)
        return honest_text(request.key)

    step = Step(make_sbp, tmp_path)
    with pytest.raises(RunError, match="after 20 answers"):
        step.run(ScriptedEngine(tokenizer, script))
    with RequestLog(step.path, "run") as log:
        assert set(log) == set(answered)


def test_a_passing_failure_is_asked_again_and_leaves_no_trace(make_sbp, tmp_path, tokenizer):
    failed: set[str] = set()

    def script(request):
        if request.key not in failed and int(request.key, 16) % 3 == 0:
            failed.add(request.key)
            return failure(request, transient=True)
        return honest_text(request.key)

    step = Step(make_sbp, tmp_path)
    product = step.run(ScriptedEngine(tokenizer, script))
    assert failed
    assert all(reason is None for _, reason in product)
    assert step.asked_again == 0
    assert not any(answer.error for answer in step.answers.values())


def test_a_lasting_failure_is_recorded_once_and_dropped_with_its_reason(
    make_sbp, tmp_path, tokenizer
):
    def script(request):
        if int(request.key, 16) % 4 == 0:
            return failure(request, transient=int(request.key, 16) % 8 == 0)
        return honest_text(request.key)

    step = Step(make_sbp, tmp_path)
    engine = ScriptedEngine(tokenizer, script)
    product = step.run(engine)
    failures = [text for text, reason in product if reason == "failed"]
    assert failures
    assert all(engine.asked.count(key) <= CONFIG.tries for key in engine.asked)
    assert step.run(None) == product


def test_garbage_ids_and_empty_answers_do_not_end_the_step(make_sbp, tmp_path, tokenizer):
    choose = random.Random(0)

    def script(request):
        kind = int(request.key, 16) % 4
        if kind == 0:
            return ""
        if kind == 1:  # bytes that are no text, NUL among them
            ids = tuple(choose.randrange(2, tokenizer.vocab_size) for _ in range(80))
            return Completion(request.key, token_ids=ids, output_tokens=81)
        if kind == 2:
            return Completion(request.key, token_ids=(0, 0, 1), finish_reason="length")
        return honest_text(request.key)

    product = Step(make_sbp, tmp_path).run(ScriptedEngine(tokenizer, script))
    reasons = {reason for _, reason in product}
    assert {None, "empty"} <= reasons


def test_the_log_bounds_what_is_outstanding(make_sbp, tmp_path, tokenizer):
    """What is asked and not committed is what a kill makes us ask again."""
    engine = ScriptedEngine(tokenizer, concurrency=5)
    with RequestLog(tmp_path / "log", "run", group=1000, seconds=3600) as log:
        shard = Shard(CONFIG, 0, make_sbp(CONFIG), log)
        largest = 0
        step = engine.step

        def watched():
            nonlocal largest
            largest = max(largest, len(engine.asked) - (len(log) - log.waiting))
            return step()

        engine.step = watched  # type: ignore[method-assign]
        shard.run(lambda: engine)
    assert largest == 5


def test_the_time_of_earlier_tries_is_kept(make_sbp, tmp_path, tokenizer):
    step = Step(make_sbp, tmp_path)
    with pytest.raises(RunError):
        step.run(ScriptedEngine(tokenizer, die_after=10))
    before = read_state(step.state_path) if step.state_path.is_file() else None
    step.run(ScriptedEngine(tokenizer))
    after = read_state(step.state_path)
    assert after.seconds > 0
    if before:
        assert after.seconds >= before.seconds
    assert replace(after, seconds=0.0).new_output_tokens > 0
