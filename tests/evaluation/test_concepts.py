"""Concept analysis: the parser on good, bad and hostile answers; exactly once; the file written."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from told_judge import ToldJudge

from megatron_synth.config import DataError, RunError
from megatron_synth.corpus import Document, write_documents
from megatron_synth.engines import Completion, RequestLog
from megatron_synth.engines.logged import LoggedEngine
from megatron_synth.evaluation.concepts import (
    CONCEPTS,
    MOST_WORDS,
    Concept,
    ConceptConfig,
    analyse_concepts,
    read_concept,
)
from megatron_synth.synthesis.answers import Unparseable

GOOD = "First: coffee houses of a town\nShared: coffee and the town\nSecond: how beans are roasted"
READ = Concept("coffee houses of a town", "coffee and the town", "how beans are roasted")


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        GOOD.replace("First", "**First").replace(":", ":**"),
        "Here you are:\n\n- " + GOOD.replace("\n", "\n- ") + "\n",
        GOOD.upper().replace("COFFEE HOUSES OF A TOWN", '"coffee houses of a town"')
        .replace("COFFEE AND THE TOWN", "coffee  and the town")
        .replace("HOW BEANS ARE ROASTED", "how beans are roasted"),
        "```\n" + GOOD.replace("\n", "\r\n") + "\n```",
    ],
)  # fmt: skip
def test_the_three_lines_are_read_whatever_marks_stand_around_them(answer):
    assert read_concept(answer) == READ


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "a line is missing"),
        ("I would say that both are about coffee.", "a line is missing"),
        (GOOD.replace("Shared", "Common"), "a line is missing"),
        (GOOD.replace("coffee and the town", ""), "a line is missing"),
        (f"{GOOD}\nFirst: another", "a line is there twice"),
        (GOOD.replace("roasted", "roasted one two three four five six seven"), "over ten words"),
    ],
)
def test_answers_of_another_form_are_refused_with_the_reason(answer, reason):
    with pytest.raises(Unparseable, match=reason):
        read_concept(answer)


LINES = st.one_of(st.text(), st.sampled_from(GOOD.split("\n")), st.sampled_from(["First:", ":"]))


@given(answer=st.one_of(st.text(), st.lists(LINES, max_size=6).map("\n".join)))
def test_any_answer_gives_three_short_lines_or_a_reason(answer):
    try:
        found = read_concept(answer)
    except Unparseable as reason:
        assert str(reason)
        return
    for part in (found.source_summary, found.concept, found.summary):
        assert 1 <= len(part.split()) <= MOST_WORDS
        assert part == " ".join(part.split())


def test_long_hostile_answers_are_read_without_a_square_of_steps():
    # Squares of these sizes would take hours.
    for hostile in ("First: " * 100_000, "*" * 1_000_000, ":\n" * 300_000, "first:\n" * 300_000):
        with pytest.raises(Unparseable):
            read_concept(hostile)


@pytest.fixture
def corpora(tmp_path):
    real = [Document(f"doc-{n}", f"the source of number {n}") for n in range(5)]
    made = [Document(f"s{n}", f"text of {n}", source_id=f"doc-{n % 5}") for n in range(20)]
    write_documents(tmp_path / "real.jsonl", real)
    write_documents(tmp_path / "synthetic.jsonl", [*made, Document("alone", "no source")])
    return tmp_path


def analyse(corpora, engine, **settings):
    return analyse_concepts(
        ConceptConfig(**settings),
        corpora / "synthetic.jsonl",
        corpora / "real.jsonl",
        engine,
        corpora / "out",
    )


def rows(corpora):
    lines = (corpora / "out" / CONCEPTS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def named(prompt):
    """What an honest judge would say of a pair, and that it saw both texts of it."""
    number = int(prompt.split("text of ")[1].split()[0])
    assert f"the source of number {number % 5}\n" in prompt
    return f"First: source {number % 5}\nShared: numbers modulo five\nSecond: text {number}"


def test_every_pair_is_asked_about_and_what_was_said_is_written(corpora):
    found = analyse(corpora, ToldJudge(named))
    assert (found["asked"], found["read"], found["distinct_concepts"]) == (20, 20, 1)
    assert len(found["examples"]) == 10
    written = rows(corpora)
    assert {row["id"] for row in written} == {f"s{n}" for n in range(20)}
    assert all(row["summary"] == f"text {row['id'][1:]}" for row in written)
    assert all(row["source_summary"] == f"source {row['source_id'][4:]}" for row in written)


def test_a_sample_is_drawn_by_seed_and_long_texts_are_cut(corpora):
    write_documents(
        corpora / "synthetic.jsonl",
        [
            Document(f"s{n}", f"text of {n} " + "x " * 90, source_id="doc-0")
            for n in range(0, 60, 5)
        ],
    )
    drawn = []
    for seed in (0, 0, 1):
        found = analyse(corpora, ToldJudge(named), samples=5, seed=seed, max_characters=100)
        drawn.append([row["id"] for row in rows(corpora)])
        assert found["cut"] == 5
    assert drawn[0] == drawn[1] != drawn[2]


def test_answers_without_the_form_are_counted_by_reason_and_too_many_fail(corpora):
    def say(prompt):
        number = int(prompt.split("text of ")[1].split()[0])
        if number == 3:
            return Completion.failed("unused", "refused", transient=False)
        return "no" if number < 3 else named(prompt)

    found = analyse(corpora, ToldJudge(say))
    assert (found["read"], found["failed"]) == (16, 1)
    assert found["unparseable"] == {"a line is missing": 3}
    with pytest.raises(RunError, match=r"16 of 20 answers .* 1 failed; the others: 3 × a line"):
        analyse(corpora, ToldJudge(say), min_judged_share=0.9)


def test_a_run_that_died_asks_each_question_once(corpora):
    first, second = ToldJudge(named, die_after=12), ToldJudge(named)
    with RequestLog(corpora / "log", "run") as log, pytest.raises(RunError, match="died"):
        analyse(corpora, LoggedEngine(first, log))
    assert not (corpora / "out" / CONCEPTS).exists()
    with RequestLog(corpora / "log", "run") as log:
        answered = len(log)
        assert analyse(corpora, LoggedEngine(second, log))["read"] == 20
    assert 0 < answered < 20
    assert len(second.asked) == 20 - answered


def test_documents_without_sources_and_missing_sources_are_refused(corpora):
    write_documents(corpora / "real.jsonl", [Document("doc-0", "only this")])
    with pytest.raises(DataError, match="4 of 5 sources"):
        analyse(corpora, ToldJudge(named))
    write_documents(corpora / "synthetic.jsonl", [Document("alone", "no source")])
    with pytest.raises(DataError, match="no document names its source"):
        analyse(corpora, ToldJudge(named))
