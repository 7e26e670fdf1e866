"""Mideval inside the step: what passes costs nothing twice, what fails stops before the rest."""

import json
import shutil

import pytest
from scripted import ScriptedEngine, honest_text

from megatron_synth.config import ConfigError, RunError, parse_config
from megatron_synth.corpus import read_documents
from megatron_synth.engines import Completion
from megatron_synth.runs import Progress
from megatron_synth.synthesis import COUNTS, DOCUMENTS, DROPPED, SynthesisConfig, synthesize
from megatron_synth.synthesis import judges as judges_module
from megatron_synth.synthesis.gate import REPORT, SAMPLE

SAMPLES = 12


def config_of(mideval, **settings):
    tree = {"method": "rephrase_hq", "ray": {"executor": "inline"}, "seed": 1, **settings}
    if mideval is not None:
        tree["mideval"] = {"samples": SAMPLES, **mideval}
    return parse_config(tree, SynthesisConfig, where="test")


def one_in_three(request):
    """A third of the answers says one passage twice."""
    text = honest_text(request.key, 40)
    return f"{text} again {text}" if int(request.key, 16) % 3 == 0 else honest_text(request.key)


@pytest.fixture
def step(documents, tokenizer, model_folder, tmp_path):
    """Run the step into `tmp_path / out`: its counts or its error, and the engine."""
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    sizes = json.loads((model / "config.json").read_text())
    sizes["max_position_embeddings"] = 4096
    (model / "config.json").write_text(json.dumps(sizes))

    def run(config, *, out="out", script=one_in_three, die_after=None):
        engine = ScriptedEngine(tokenizer, script, die_after=die_after)
        counts = None
        try:
            counts = synthesize(
                config,
                documents,
                tokenizer.folder,
                model,
                tmp_path / out,
                Progress(),
                make_engine=lambda: engine,
            )
        except RunError as error:
            return error, engine
        return counts, engine

    return run


@pytest.fixture
def read_report(tmp_path):
    return lambda: json.loads((tmp_path / "out" / REPORT).read_text())


def test_a_gate_that_passes_costs_no_request_and_changes_no_file(step, tmp_path, read_report):
    plain, first = step(config_of(None), out="plain")
    gated, second = step(config_of({"max_repetition": 0.9}))
    assert sorted(first.asked) == sorted(second.asked)
    assert len(set(second.asked)) == len(second.asked)
    timing = ("seconds", "tokens_per_second")
    assert {k: v for k, v in plain.items() if k not in timing} == {
        k: v for k, v in gated.items() if k not in timing
    }
    for name in (DOCUMENTS, DROPPED):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert read_report()["stopped_by"] is None


def test_a_gate_that_fails_stops_before_the_rest_is_asked(step, tmp_path, read_report):
    error, engine = step(config_of({"max_repetition": 0.01}))
    sample = list(read_documents(tmp_path / "out" / SAMPLE))
    repeating = [d for d in sample if d.metadata.get("drop_reason") == "repeated_shingle"]
    assert len(engine.asked) == len(sample) == SAMPLES
    assert 0 < len(repeating) < SAMPLES
    share = len(repeating) / SAMPLES
    assert f"repetition {share:.1%} (max_repetition 1.0%)" in error.what
    assert f"{SAMPLES - len(repeating)} of the first {SAMPLES} documents passed" in error.what
    assert error.where == str(tmp_path / "out" / REPORT)
    assert not (tmp_path / "out" / DOCUMENTS).exists()
    assert not (tmp_path / "out" / COUNTS).exists()
    report = read_report()
    assert report["figures"]["repetition"] == share
    assert report["limits"] == {"max_repetition": 0.01}
    assert "repetition" in report["stopped_by"]
    assert report["dropped"] == {"repeated_shingle": len(repeating)}


def test_after_a_failed_gate_looser_limits_go_on_and_ask_nothing_anew(step, read_report):
    _, first = step(config_of({"max_repetition": 0.01}))
    again, nothing = step(config_of({"max_repetition": 0.01}))
    assert isinstance(again, RunError)
    assert nothing.asked == []
    counts, rest = step(config_of({"max_repetition": 0.9}))
    assert not set(first.asked) & set(rest.asked)
    assert len(first.asked) + len(rest.asked) == counts["requests"] == 40
    assert (counts["asked_again"], counts["surplus_requests"]) == (0, 0)
    assert read_report()["stopped_by"] is None


@pytest.mark.parametrize("death", [5, 20])
def test_a_run_killed_in_the_sample_or_after_it_asks_again_only_what_was_open(step, death):
    config = config_of({"max_repetition": 0.9})
    error, first = step(config, die_after=death)
    assert "the scripted engine died" in error.what
    counts, second = step(config)
    assert counts["asked_again"] <= second.concurrency
    assert len(first.asked) + len(second.asked) == counts["requests"] + counts["asked_again"]


def test_draws_without_end_are_sampled_no_further_than_their_target(step):
    config = config_of(
        {"max_repetition": 0.9},
        method="sbp",
        tokens=3000,
    )
    counts, engine = step(config)
    assert counts["tokens"] >= 3000
    assert len(set(engine.asked)) == len(engine.asked)
    small = config_of(
        {"samples": 1000},
        method="sbp",
        tokens=3000,
    )
    more, other = step(small, out="small")
    assert more["requests"] == counts["requests"]
    assert len(other.asked) <= len(engine.asked) + engine.concurrency


def test_shards_share_the_work_after_the_first_has_given_the_sample(step, read_report):
    counts, engine = step(config_of({}, shards=3))
    assert counts["requests"] == len(set(engine.asked)) == len(engine.asked) == 40
    assert read_report()["documents"] == SAMPLES
    counts, _ = step(config_of({"samples": 30}, shards=3), out="more")
    assert counts["requests"] == 40  # a shard has 13 or 14


def test_too_few_kept_documents_stop_it(step):
    def script(request):
        return "short" if int(request.key, 16) % 2 else honest_text(request.key)

    error, _ = step(config_of({"min_kept_share": 0.99}), script=script)
    assert "(min_kept_share 99.0%)" in error.what
    error, engine = step(config_of({}), out="short", script=lambda _: "short")
    assert f"no document is left to look at; dropped: {SAMPLES} too_short" in error.what
    assert len(engine.asked) == SAMPLES


def says_relevant(request):
    """A judge that knows nothing about facts."""
    text = "relevant" if request.prompt.startswith("Two texts") else "I cannot say"
    return Completion(request.key, text=text)


@pytest.fixture
def judges(tokenizer, monkeypatch):
    """Judges in the order in which they were started; set `script`, `die_after` of the next."""
    started = Judges()

    def start_judge(engine, folder):
        judge = ScriptedEngine(tokenizer, started.script, die_after=started.die_after)
        started.append(judge)
        return judge

    monkeypatch.setattr(judges_module, "start_judge", start_judge)
    return started


class Judges(list):
    script = staticmethod(says_relevant)
    die_after = None


ENDPOINT = {"kind": "endpoint", "url": "http://127.0.0.1:9/v1", "model": "a-judge"}


def test_a_judge_is_asked_once_and_its_bad_answers_are_counted(step, judges, read_report):
    settings = {"engine": ENDPOINT, "max_irrelevant": 0.5}
    error, _ = step(config_of(settings))
    asked = 2 * SAMPLES
    assert f"the judge answered {SAMPLES} of {asked} questions in the form asked for" in error.what
    assert len(judges[0].asked) == asked
    assert judges[0].closed
    report = read_report()
    assert report["judge"].startswith("a-judge@")
    assert report["figures"]["unparseable"] == report["figures"]["unjudged"] == SAMPLES
    counts, _ = step(config_of({**settings, "min_judged_share": 0.5}))
    assert counts["documents"] > 0
    assert len(judges) == 1
    assert read_report()["figures"]["irrelevant"] == 0.0


def test_a_gate_that_dies_while_it_judges_asks_the_judge_for_the_rest_only(step, judges):
    config = config_of({"engine": ENDPOINT, "min_judged_share": 0})
    judges.die_after = 17
    error, generator = step(config)
    assert "the scripted engine died" in error.what
    judges.die_after = None
    counts, more = step(config)
    first, second = judges
    assert len(set(first.asked) | set(second.asked)) == 2 * SAMPLES
    assert len(set(first.asked) & set(second.asked)) <= first.concurrency
    assert len(set(second.asked)) == len(second.asked)
    assert not set(generator.asked) & set(more.asked)
    assert counts["requests"] == len(generator.asked) + len(more.asked)


def test_what_the_judge_failed_at_is_asked_again_by_the_next_try(step, judges, read_report):
    failing = set()

    def fail(request):
        if request.prompt.startswith("Two texts"):
            return says_relevant(request)
        failing.add(request.key)
        return Completion.failed(request.key, "503 busy", transient=True)

    judges.script = fail
    error, _ = step(config_of({"engine": ENDPOINT}))
    assert f"{SAMPLES} failed" in error.what
    judges.script = lambda request: Completion(request.key, text="no error", finish_reason="stop")
    counts, _ = step(config_of({"engine": ENDPOINT}))
    assert counts["documents"] > 0
    assert set(judges[1].asked) == failing
    assert read_report()["figures"]["unjudged"] == 0


def test_a_judge_is_known_by_what_it_is_and_not_by_its_path(
    step, judges, tokenizer, model_folder, tmp_path, read_report
):
    def make_judge(path, weights=b"weights"):
        shutil.copytree(model_folder, path)
        shutil.copytree(tokenizer.folder, path, dirs_exist_ok=True)
        (path / "model.safetensors").write_bytes(weights)
        return {"judge": str(path), "min_judged_share": 0, "max_repetition": 0}

    step(config_of(make_judge(tmp_path / "here")))
    name = read_report()["judge"]
    moved = make_judge(tmp_path / "moved" / "here")
    step(config_of({**moved, "engine": {"concurrency": 4}}))
    assert len(judges) == 1
    assert read_report()["judge"] == name
    step(config_of(make_judge(tmp_path / "other" / "here", b"other weights")))
    assert len(judges[1].asked) == len(set(judges[1].asked)) == len(judges[0].asked)
    assert read_report()["judge"] != name
    step(config_of({**moved, "engine": {"chat": False, "max_model_len": 64}}))
    assert len(judges) == 3


@pytest.mark.parametrize(
    ("mideval", "settings", "message"),
    [
        ({"max_irrelevant": 0.1}, {}, "max_irrelevant needs a judge"),
        ({"engine": {"kind": "server"}}, {}, "kind server needs judge"),
        ({"max_copies": 0.1}, {"method": "self_distill", "tokens": 9}, "self_distill has no"),
        ({"max_repetitions": 0.1}, {}, "max_repetition"),
        ({"max_copies": 10}, {}, "less than or equal to 1"),
    ],
)
def test_limits_on_what_cannot_be_measured_are_refused(mideval, settings, message):
    tree = {"method": "rephrase_hq", **settings, "mideval": mideval}
    with pytest.raises(ConfigError, match=message):
        parse_config(tree, SynthesisConfig, where="test")
