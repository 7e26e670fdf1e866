"""Mideval: every figure on documents of which it is known, the judge's answers, the gate."""

import json
import re

import pytest
from scripted import ScriptedEngine, honest_text

from megatron_synth.config import ConfigError, DataError, RunError
from megatron_synth.corpus import Document, write_documents
from megatron_synth.engines import Completion
from megatron_synth.synthesis.judging import FACTUALITY, RELEVANCE, judge, read_label
from megatron_synth.synthesis.mideval import MidevalConfig, is_near_copy, mideval

ORGANIC = [Document(f"doc-{n}", honest_text(f"organic {n}", 60)) for n in range(20)]


def synthetic(number, text=None):
    own = honest_text(f"synthetic {number}", 60)
    return Document(f"s{number}", own if text is None else text, source_id=f"doc-{number}")


@pytest.fixture
def corpus(tmp_path):
    """20 documents: two repeat themselves, three copy their source, four repeat a fifth."""
    documents = [synthetic(n) for n in range(11)]
    documents += [
        synthetic(n, honest_text(f"r{n}", 30) + " x y " + honest_text(f"r{n}", 30))
        for n in (11, 12)
    ]
    documents += [synthetic(n, ORGANIC[n].text.upper() + "!") for n in (13, 14, 15)]
    documents += [
        synthetic(n, honest_text("synthetic 0", 60) + f" end {'abcd'[n - 16]}")
        for n in range(16, 20)
    ]
    write_documents(tmp_path / "synthetic.jsonl", documents)
    write_documents(tmp_path / "organic.jsonl", ORGANIC)
    return tmp_path


def measure(corpus, engine=None, documents="organic.jsonl", **settings):
    config = MidevalConfig.model_validate(settings)
    sources = None if documents is None else corpus / documents
    return mideval(config, corpus / "synthetic.jsonl", sources, engine)


def answering(tokenizer, answer):
    """A judge whose answer to a prompt is `answer(prompt)`."""

    def script(request):
        found = answer(request.prompt)
        if isinstance(found, str):
            return Completion(request.key, text=found)
        return Completion.failed(request.key, "busy", transient=found)

    return ScriptedEngine(tokenizer, script)


def test_repetition_near_duplicates_and_copies_are_counted_by_rule(corpus):
    figures = measure(corpus)
    assert figures["repetition"] == 2 / 20
    assert figures["copies"] == 3 / 20
    assert figures["near_duplicates"] == 4 / 20
    assert figures["irrelevant"] is figures["factual_errors"] is None
    assert figures["samples"] == figures["copies_samples"] == 20


def test_a_smaller_sample_is_drawn_by_seed_and_duplicates_come_from_the_beginning(corpus):
    few = [measure(corpus, samples=8, seed=seed)["copies"] for seed in range(8)]
    assert few == [measure(corpus, samples=8, seed=seed)["copies"] for seed in range(8)]
    assert len(set(few)) > 1
    assert measure(corpus, duplicate_samples=17)["near_duplicates"] == 1 / 17


def test_without_sources_what_needs_them_is_not_measured(corpus):
    figures = measure(corpus, documents=None)
    assert figures["copies"] is None
    assert figures["repetition"] == 2 / 20


def test_the_judge_sees_document_and_source_and_its_answers_are_counted(corpus, tokenizer):
    prompts = []

    def answer(prompt):
        prompts.append(prompt)
        if "{{" in prompt:
            return "a field was left"
        if prompt.startswith("Two texts"):
            both = ORGANIC[3].text in prompt and honest_text("synthetic 3", 60) in prompt
            return "Irrelevant." if both else "relevant"
        if honest_text("synthetic 4", 60) in prompt:
            return "**error**"
        return "undefined" if honest_text("synthetic 5", 60) in prompt else "No error"

    figures = measure(corpus, answering(tokenizer, answer))
    assert figures["irrelevant"] == 1 / 20
    assert figures["factual_errors"] == 1 / 20
    assert figures["factuality_undefined"] == 1 / 20
    assert (figures["irrelevant_samples"], figures["factuality_samples"]) == (20, 20)
    assert (figures["unjudged"], figures["cut"]) == (0, 0)
    assert len(prompts) == 40


def test_long_texts_are_cut_for_the_judge_and_counted(corpus, tokenizer):
    seen = []
    engine = answering(tokenizer, lambda prompt: seen.append(len(prompt)) or "relevant")
    figures = measure(corpus, engine, max_characters=100, min_judged_share=0.5)
    assert figures["cut"] == 40
    assert max(seen) < 1500
    assert figures["unjudged"] == 20  # "relevant" says nothing about facts


def test_a_judge_that_does_not_answer_in_the_form_asked_for_is_no_judge(corpus, tokenizer):
    chatty = answering(tokenizer, lambda _: "I think that they are relevant")
    with pytest.raises(RunError, match="0 of 40 questions in the form asked for: 40 answers"):
        measure(corpus, chatty)
    failing = answering(tokenizer, lambda _: False)
    with pytest.raises(RunError, match="0 answers are none of the labels or were cut, 40 failed"):
        measure(corpus, failing)


def test_passing_failures_are_asked_again(tokenizer):
    seen = {}

    def answer(prompt):
        seen[prompt] = seen.get(prompt, 0) + 1
        return "relevant" if seen[prompt] == 3 else True

    rows = [{"source": f"a{n}", "text": "b"} for n in range(5)]
    verdicts = judge(RELEVANCE, rows, answering(tokenizer, answer), 8)
    assert verdicts.labels == {"relevant": 5, "irrelevant": 0}
    assert set(seen.values()) == {3}
    always = judge(RELEVANCE, rows, answering(tokenizer, lambda _: True), 8)
    assert (always.failed, always.judged, always.share("relevant")) == (5, 0, None)


def test_equal_rows_are_counted_one_by_one(tokenizer):
    rows = [{"text": "same"}] * 3
    verdicts = judge(FACTUALITY, rows, answering(tokenizer, lambda _: "error"), 8)
    assert verdicts.labels["error"] == verdicts.asked == 3


def test_an_answer_cut_at_its_longest_does_not_count(tokenizer):
    engine = ScriptedEngine(
        tokenizer, lambda request: Completion(request.key, "error", finish_reason="length")
    )
    assert judge(FACTUALITY, [{"text": "x"}], engine, 1).unparseable == 1


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("error", "error"),
        (" **No Error**.\n", "no error"),
        ('"undefined"', "undefined"),
        ("no  error", "no error"),
        ("error, since", None),
        ("not error", None),
        ("", None),
        ("errors", None),
    ],
)
def test_only_a_label_alone_is_an_answer(answer, label):
    assert read_label(answer, FACTUALITY.labels) == label


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_repetition": 0.05}, "repetition 10.0% (max_repetition 5.0%)"),
        ({"max_near_duplicates": 0.1}, "near_duplicates 20.0% (max_near_duplicates 10.0%)"),
        ({"max_copies": 0.0}, "copies 15.0% (max_copies 0.0%)"),
    ],
)
def test_a_figure_over_its_limit_stops_with_all_figures(corpus, settings, message):
    with pytest.raises(RunError, match=re.escape(message)) as error:
        measure(corpus, **settings)
    assert "All figures: repetition 10.0%, near_duplicates 20.0%, copies 15.0%" in str(error.value)


def test_figures_at_their_limits_pass(corpus, tokenizer):
    limits = {"max_repetition": 0.1, "max_near_duplicates": 0.2, "max_copies": 0.15}
    engine = answering(tokenizer, lambda p: "relevant" if p.startswith("Two") else "error")
    assert measure(corpus, engine, max_irrelevant=0.0, max_factual_errors=1.0, **limits)
    with pytest.raises(RunError, match=r"factual_errors 100\.0%"):
        measure(corpus, engine, max_factual_errors=0.5)


@pytest.mark.parametrize("setting", ["max_copies", "max_irrelevant", "max_factual_errors"])
def test_a_limit_on_what_cannot_be_measured_is_refused(corpus, setting):
    with pytest.raises(ConfigError, match=setting):
        measure(corpus, documents=None, **{setting: 0.5})


def test_sources_that_are_not_there_are_refused(corpus):
    write_documents(corpus / "others.jsonl", ORGANIC[5:])
    with pytest.raises(DataError, match="5 of 20 sources are not among the documents"):
        measure(corpus, documents="others.jsonl")
    (corpus / "synthetic.jsonl").write_text("")
    with pytest.raises(DataError, match="no synthetic documents"):
        measure(corpus)


def test_near_copies_differ_in_case_punctuation_and_a_few_words():
    text = honest_text("a", 60)
    assert is_near_copy(text, text.upper().replace(" ", ",\n"))
    assert is_near_copy(text + " and five words that are new", text)
    assert not is_near_copy(text, honest_text("b", 60))
    assert not is_near_copy(text, text + honest_text("b", 60))
    assert is_near_copy("two words", "two  words")
    assert not is_near_copy("two words", "three words")


def test_the_verb_prints_figures_and_stops_with_status_1(corpus, monkeypatch, capsys):
    from megatron_synth.cli import main

    words = [str(corpus / "synthetic.jsonl"), "--documents", str(corpus / "organic.jsonl")]
    monkeypatch.setattr("sys.argv", ["megatron-synth", "mideval", *words, "--json"])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert not leaving.value.code
    assert json.loads(capsys.readouterr().out)["copies"] == 0.15
    monkeypatch.setattr("sys.argv", ["megatron-synth", "mideval", *words, "max_copies=0.1"])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 1
    assert "mideval stops here: copies 15.0%" in capsys.readouterr().err
