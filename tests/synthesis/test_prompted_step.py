"""Prompted methods in a whole shard and step: exactly once through every kill, a product that is a
function of the log, failures by reason.
"""

import json
import os
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scripted import ScriptedEngine, honest_text

from megatron_synth.config import ConfigError, DataError, RunError
from megatron_synth.corpus import Document, read_documents
from megatron_synth.engines import Completion, RequestLog
from megatron_synth.runs import Progress
from megatron_synth.synthesis import (
    DOCUMENTS,
    DROPPED,
    Generator,
    SynthesisConfig,
    load_prompts,
    run,
    synthesize,
)
from megatron_synth.synthesis.methods.making import make_method
from megatron_synth.synthesis.seeds import build_seeds
from megatron_synth.synthesis.shard import Shard

KILLS = 20 if os.environ.get("MEGATRON_SYNTH_TESTS") == "full" else 5
METHODS = ["rephrase_hq", "faq", "textbook", "latent_thoughts"]
SMALL = {"filters": {"min_tokens": 1, "max_copied_share": 1.0, "repeated_shingle": False}}
PLAN = "Title: Bees\n" + "\n".join(f"Chapter {n}: Part {n} - it" for n in range(1, 11))


def whole_answer(request, salt=""):
    """An answer in the form that the request asks for."""
    words = honest_text(f"{salt}{request.key}", 12)
    if "\nPlan:" in request.prompt:
        return PLAN
    if "Exercises:" in request.prompt:
        return f"{words}\nExercises:\n1. {words}\nAnswers:\n1. {words}"
    if "Question:" in request.prompt:
        return f"Question: {words}?\nAnswer: {words}."
    return words


def moody_answer(request, salt=""):
    """Sometimes of another form, cut, refused for good, or failed for a passing reason."""
    mood = int(request.key, 16) % 11
    if mood == 0:
        return "I would rather not."
    if mood == 1:
        return Completion.failed(request.key, "context too long", transient=False)
    if mood == 2:
        return Completion.failed(request.key, "503 busy", transient=True)
    return whole_answer(request, salt)


class Step:
    """A shard that can be run again and again on the same log."""

    def __init__(self, folder, tokenizer, documents, config, number=0):
        build_seeds(documents, tokenizer, folder / "seeds")
        generator = Generator("generator@0", 8192, ())
        self.config = config
        self.number = number
        self.method = make_method(
            config, load_prompts(config), folder / "seeds", tokenizer.folder, generator
        )
        self.path = folder / f"requests-{number}.log"

    def run(self, engine):
        def start():
            assert engine is not None, "the log was complete; no engine is needed"
            return engine

        # Group commits by count alone: by time a failure would come and go.
        with RequestLog(self.path, "run", group=3, seconds=60) as log:
            shard = Shard(self.config, self.number, self.method, log)
            self.state = shard.run(start)
            self.asked_again = log.asked_again
            self.answers = {key: log.read(key) for key in log}
            return [(outcome.document, outcome.reason) for outcome in shard.product()]


@pytest.mark.parametrize("method", METHODS)
@given(deaths=st.lists(st.integers(0, 80), max_size=KILLS), cut=st.integers(0, 30))
@example(deaths=[32, 70, 71], cut=0)  # dies while failures wait for an answer that proves them
@settings(
    max_examples=KILLS,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # it holds no state
)
def test_killed_anywhere_every_key_is_answered_once_and_texts_stay(
    tmp_path_factory, tokenizer, documents, method, deaths, cut
):
    """Each try ends in the middle, by a dead engine and a torn file; each answers differently."""
    config = SynthesisConfig(method=method, generations=2, allow_short=True, **SMALL)
    step = Step(tmp_path_factory.mktemp("kill"), tokenizer, documents[:8], config)
    committed: dict[str, Completion] = {}
    bound = 0
    for attempt, death in enumerate(deaths):
        engine = ScriptedEngine(
            tokenizer, lambda r, salt=str(attempt): moody_answer(r, salt), die_after=death
        )
        try:
            step.run(engine)
        except RunError:
            bound += engine.concurrency
        step.path.write_bytes(step.path.read_bytes() + b"0123456789abcdef A " + b"x" * cut)
        with RequestLog(step.path, "run") as log:
            found = {key: log.read(key) for key in log}
        assert committed.items() <= found.items()
        committed = found
    last = ScriptedEngine(tokenizer, moody_answer)
    product = step.run(last)
    assert committed.items() <= step.answers.items()
    assert not set(committed) & set(last.asked)
    assert step.asked_again <= bound
    assert step.run(None) == product
    pairs = {(document.source_id, document.generation) for document, _ in product}
    assert len(pairs) == len(product) == 16
    assert sum(d.metadata["requests"] for d, _ in product) == len(step.answers)


@pytest.mark.parametrize("method", METHODS)
def test_shards_together_make_all_documents_and_generations_once(
    tmp_path, tokenizer, documents, method
):
    config = SynthesisConfig(method=method, generations=2, shards=3, **SMALL)
    made, keys = [], []
    for number in range(3):
        step = Step(tmp_path, tokenizer, documents[:8], config, number)
        made += step.run(ScriptedEngine(tokenizer, whole_answer))
        keys += step.answers
    assert len(set(keys)) == len(keys)
    assert sorted(d.metadata["request"] for d, _ in made) == list(range(16))
    assert all(reason is None for _, reason in made)


def test_follow_up_questions_go_before_new_documents(tmp_path, tokenizer, documents):
    """Else all plans would be asked for first, and all half-made books kept in memory."""
    config = SynthesisConfig(method="textbook", **SMALL)
    step = Step(tmp_path, tokenizer, documents, config)
    asked = []

    def script(request):
        asked.append("plan" if "\nPlan:" in request.prompt else "chapter")
        return whole_answer(request)

    engine = ScriptedEngine(tokenizer, script)
    step.run(engine)
    half = asked[: len(asked) // 2]
    assert half.count("plan") <= half.count("chapter") // 10 + 2 * engine.concurrency
    assert asked.count("plan") == 40
    assert asked.count("chapter") == 400


def test_a_target_ends_the_step_and_the_product_is_the_documents_before_it(
    tmp_path, tokenizer, documents
):
    config = SynthesisConfig(method="rephrase_hq", tokens=300, **SMALL)
    step = Step(tmp_path, tokenizer, documents, config)
    product = step.run(ScriptedEngine(tokenizer, whole_answer))
    kept = [d.token_counts["text"] + 1 for d, reason in product if reason is None]
    assert sum(kept) >= 300 > sum(kept[:-1])
    assert [d.metadata["request"] for d, _ in product] == list(range(len(product)))


def test_documents_that_end_before_the_target_say_so(tmp_path, tokenizer, documents):
    config = SynthesisConfig(method="rephrase_hq", tokens=10**6, **SMALL)
    step = Step(tmp_path, tokenizer, documents, config)
    with pytest.raises(RunError, match=r"40 requests, all that .* give, gave \d+ of 1000000"):
        step.run(ScriptedEngine(tokenizer, whole_answer))
    step.config = config.model_copy(update={"allow_short": True})
    assert len(step.run(None)) == 40


def test_a_cap_below_the_work_needs_leave_and_one_that_is_as_large_does_not(
    tmp_path, tokenizer, documents
):
    config = SynthesisConfig(method="rephrase_hq", max_requests=40, **SMALL)
    step = Step(tmp_path, tokenizer, documents, config)
    engine = ScriptedEngine(tokenizer, whole_answer)
    assert len(step.run(engine)) == 40
    step.config = config.model_copy(update={"max_requests": 15})
    with pytest.raises(
        RunError, match=r"15 requests, the most that max_requests allows, gave \d+ t"
    ):
        step.run(None)
    step.config = step.config.model_copy(update={"allow_short": True})
    assert len(step.run(None)) == 15


def test_a_broken_engine_stops_the_step_early(tmp_path, tokenizer, documents):
    config = SynthesisConfig(method="textbook", **SMALL)
    step = Step(tmp_path, tokenizer, documents, config)
    broken = ScriptedEngine(
        tokenizer, lambda r: Completion.failed(r.key, "no memory", transient=False)
    )
    with pytest.raises(RunError, match="32 requests in a row, after 0 answers: 32 times no memory"):
        step.run(broken)
    assert len(step.run(ScriptedEngine(tokenizer, whole_answer))) == 40


@pytest.mark.parametrize("transient", [True, False])
def test_the_last_requests_of_a_restart_can_fail_for_good_but_not_for_an_engine_that_is_away(
    tmp_path, tokenizer, documents, transient
):
    config = SynthesisConfig(method="rephrase_hq", **SMALL)
    step = Step(tmp_path, tokenizer, documents[:8], config)
    last: set[str] = set()

    def script(request):
        if len(last) < 2 or request.key in last:
            last.add(request.key)
            return Completion.failed(request.key, "503 busy", transient=transient)
        return whole_answer(request)

    stubborn = ScriptedEngine(tokenizer, script)
    with RequestLog(step.path, "run") as log:  # all but the failures, as a kill leaves it
        for item in step.method.items(0, 1):
            [request] = next(step.method.write(item))
            answer = script(request)
            if not isinstance(answer, Completion):
                log.append(Completion(request.key, answer))
    if transient:
        with pytest.raises(RunError, match="failed 2 requests in a row, after 0 answers"):
            step.run(stubborn)
        step.config = config.model_copy(update={"allow_short": True})
    reasons = [reason for _, reason in step.run(stubborn)]
    assert sorted(map(str, reasons)) == ["None"] * 6 + ["failed"] * 2


@pytest.fixture
def step(documents, tokenizer, model_folder, tmp_path):
    """The whole step into `tmp_path`, in this process; the model's context is long enough."""
    generator = tmp_path / "model"
    generator.mkdir()
    config = json.loads((model_folder / "config.json").read_text())
    (generator / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    (generator / "model.safetensors").write_bytes(b"weights")

    def run(method, *, seeds=documents, script=whole_answer, out="out", engine=None, **changes):
        used = engine or ScriptedEngine(tokenizer, script)
        return synthesize(
            SynthesisConfig(method=method, ray={"executor": "inline"}, **{**SMALL, **changes}),
            seeds,
            tokenizer.folder,
            generator,
            tmp_path / out,
            Progress(),
            make_engine=lambda: used,
        )

    return run


@pytest.mark.parametrize("method", METHODS)
def test_the_whole_step_counts_requests_and_documents(step, tmp_path, method):
    counts = step(method, generations=2, script=moody_answer)
    kept = list(read_documents(tmp_path / "out" / DOCUMENTS))
    dropped = list(read_documents(tmp_path / "out" / DROPPED))
    assert len(kept) == counts["documents"]
    assert len(kept) + len(dropped) == 80
    assert counts["requests"] == sum(d.metadata["requests"] for d in kept + dropped)
    assert counts["surplus_requests"] == 0
    assert counts["output_tokens"] == sum(d.token_counts["output"] for d in kept + dropped)
    failed = [d for d in dropped if d.finish_reason == "error"]
    assert {d.metadata["drop_reason"] for d in failed} >= {"context_too_long"}
    assert all(d.metadata["drop_reason"] == d.metadata["failure"] for d in failed)
    assert set(counts["dropped"]) == {d.metadata["drop_reason"] for d in dropped}
    assert all(re.fullmatch(r"model@\w{12}", d.generator) for d in kept)


def test_a_rerun_writes_equal_files_without_asking(step, tmp_path, tokenizer):
    first = step("faq", generations=2, script=moody_answer)
    files = {name: (tmp_path / "out" / name).read_bytes() for name in (DOCUMENTS, DROPPED)}

    def never(request):
        raise AssertionError("nothing is left to ask")

    assert step("faq", generations=2, script=never) == first
    for name in (DOCUMENTS, DROPPED, "counts.json"):
        (tmp_path / "out" / name).unlink()
    step("faq", generations=2, script=never)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files} == files


def test_long_documents_are_counted_in_the_result(step):
    counts = step("rephrase_hq", max_input_tokens=60)
    assert 0 < counts["inputs_cut"] < counts["seeds"] == 40


def test_more_tries_ask_again_only_for_what_could_not_be_parsed(step, tokenizer):
    def form_on_the_third_try(request):
        return "no pairs" if int(request.key, 16) % 2 else whole_answer(request)

    first = step("faq", tries=1, script=form_on_the_third_try)
    engine = ScriptedEngine(tokenizer, form_on_the_third_try)
    second = step("faq", tries=4, engine=engine)
    assert second["documents"] > first["documents"]
    assert second["requests"] == first["requests"] + len(engine.asked)


def test_answers_of_another_form_are_counted_by_that_reason(step):
    def script(request):
        return "no pairs" if request.prompt.count("ba") % 2 else whole_answer(request)

    counts = step("faq", script=script)
    assert set(counts["dropped"]) == {"unparseable"}
    assert counts["documents"] + counts["dropped"]["unparseable"] == 40
    assert counts["requests"] == counts["documents"] + 3 * counts["dropped"]["unparseable"]


def test_another_prompt_in_the_same_folder_is_refused(step, tmp_path):
    step("faq")
    path = tmp_path / "mine.md"
    path.write_text("---\nname: mine\nversion: 1\nanswer: qa\n---\nQuestion: {{text}}\n")
    with pytest.raises(DataError, match="belongs to another run"):
        step("faq", prompt_file=path)


def test_a_step_whose_every_document_is_dropped_fails_and_says_why(step):
    with pytest.raises(RunError, match="no document passed the filters; dropped: 40 too_short"):
        step("rephrase_hq", filters={"min_tokens": 10_000})


def test_a_method_with_a_source_needs_documents(step):
    with pytest.raises(ConfigError, match="faq needs documents"):
        step("faq", seeds=None)


@pytest.mark.parametrize(
    ("method", "gpu", "asked", "speculation"),
    [
        ("rephrase_hq", True, None, "ngram"),
        ("rephrase_hq", True, "off", "off"),
        ("rephrase_hq", False, None, "off"),
        ("rephrase_hq", False, "ngram", "ngram"),
        ("textbook", True, None, "off"),
        ("latent_thoughts", True, None, "off"),
    ],
)
def test_tokens_are_guessed_on_a_gpu_where_answers_repeat_their_source(
    method, gpu, asked, speculation, monkeypatch, tokenizer, tmp_path
):
    started = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr(run, "start_engine", lambda *arguments: started.append(arguments))
    config = SynthesisConfig(method=method, engine={"speculation": asked})
    run._start_engine(config, tmp_path, tokenizer.folder, Generator("g@0", 8192, (3,)))
    [(engine, folder, used, banned)] = started
    assert engine.speculation == speculation
    assert (folder, used.fingerprint, banned) == (tmp_path, tokenizer.fingerprint, (3,))


def test_documents_with_the_spelling_of_fields_and_control_tokens_go_through(step, tmp_path):
    hostile = [Document("a", "{{text}} <|endoftext|> {0} \\1 bees " * 9)]
    asked = []

    def script(request):
        asked.append(request.prompt)
        return whole_answer(request)

    counts = step("rephrase_hq", seeds=hostile, script=script)
    assert counts["documents"] == 1
    assert hostile[0].text in asked[0]
