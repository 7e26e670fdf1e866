"""What models write, and what a document says then; no answer of any kind may break a parser."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_synth.synthesis.answers import (
    ENTRIES,
    FORMS,
    KINDS,
    Entry,
    Outline,
    Unparseable,
    chapter,
    entries,
    format_outline,
    problems,
    question_answers,
    read_entries,
    read_outline,
    table,
    text,
)

PIECES = [
    "Question:", "Answer:", "**Question 2:**", "Problem: a", "Solution: b", "Title: T",
    "Introduction: I", *(f"Chapter {n}: c{n} - d" for n in range(1, 12)), "Appendix A: x",
    "Exercises:", "Answers:", "## Exercises", "| a | b |", "|---|---|", "| 1 | 2 |", "|", "```",
    '<entry kind="factual">', "<entry kind=none>", "<topic>t</topic>", "<content>c</content>",
    "</entry>", "<topic>", "</content>", "words", "", "1. ", "- ", "\u2028", "\ud800", "İ" * 3,
]  # fmt: skip


def outline_lines():
    return ["Title: Bees", "Introduction: All of them.",
            *(f"Chapter {n}: Part {n} - what {n} is" for n in range(1, 11))]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@given(pieces=st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=20))))
def test_any_answer_is_parsed_or_refused_with_a_reason(form, pieces):
    answer = "\n".join(pieces)
    try:
        found = FORMS[form](answer)
    except Unparseable as reason:
        assert str(reason)
    else:
        assert found.strip()


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("entries", "text")])
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=40))
def test_the_form_that_documents_share_is_read_back_as_it_is(form, pieces):
    try:
        once = FORMS[form]("\n".join(pieces))
    except Unparseable:
        return
    assert FORMS[form](once) == once


@pytest.mark.timeout(60)  # quadratic time would be hours
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "piece", ["-", "|", "| ", "#", "**", "1.", "<entry ", "<entry>", "<topic>", "Question:", " \n"]
)
def test_a_megabyte_of_nonsense_takes_no_time_worth_speaking_of(form, piece):
    answer = piece * (1_000_000 // len(piece))
    with contextlib.suppress(Unparseable):
        assert FORMS[form](f"{answer}x")


def test_prose_loses_a_code_fence_around_the_whole_and_nothing_else():
    assert text(" A.\n\nB.\n") == "A.\n\nB."
    assert text("```markdown\nA.\n```") == "A."
    assert text("A.\n```\ncode\n```") == "A.\n```\ncode\n```"
    with pytest.raises(Unparseable, match="no text"):
        text(" \n ")


@pytest.mark.parametrize(
    "answer",
    [
        "Question: Who?\nAnswer: A bee.\nQuestion: Why?\nAnswer: It flies.\nFar.",
        "Here they are:\n\n**Question:** Who?\n**Answer:** A bee.\n\n"
        "**Question:** Why?\n**Answer:** It flies.\nFar.",
        "1. Question: Who?\n   Answer: A bee.\n2. Question: Why?\n   Answer: It flies.\nFar.",
        "## Question 1: Who?\nANSWER 1: A bee.\n\n## Question 2:\nWhy?\nanswer: It flies.\nFar.",
        "Question: Who?\nAnswer: A bee.\nQuestion: Why?\nAnswer: It flies.\nFar.\nQuestion: And",
        "Answer: lost\nQuestion: Who?\nAnswer: A bee.\nQuestion: Why?\nAnswer: It flies.\nFar.",
    ],
)
def test_pairs_are_found_under_all_marks_and_half_ones_are_left_out(answer):
    assert question_answers(answer) == (
        "Question: Who?\nAnswer: A bee.\n\nQuestion: Why?\nAnswer: It flies.\nFar."
    )


def test_a_sentence_that_begins_like_a_tag_is_no_tag():
    answer = "Question: What?\nAnswer: One.\nQuestions remain: many.\nAnswer me this: no."
    assert question_answers(answer) == (
        "Question: What?\nAnswer: One.\nQuestions remain: many.\nAnswer me this: no."
    )


@pytest.mark.parametrize("answer", ["", "Question: Who?", "Answer: A bee.", "Q: a\nA: b"])
def test_without_a_whole_pair_there_is_no_document(answer):
    with pytest.raises(Unparseable):
        question_answers(answer)


def test_problems_come_with_their_solutions():
    assert problems("**Problem 1:** 1 + 1?\n**Solution:** 2") == "Problem: 1 + 1?\nSolution: 2"


def test_a_table_needs_a_rule_and_two_rows_and_keeps_the_words_after_it():
    good = "| a | b |\n|:--|---|\n| 1 | 2 |\n| 3 | 4 |"
    assert table(f"Sure!\n\n{good}\n\nIt grows.") == f"{good}\n\nIt grows."
    for bad, reason in (
        ("words", "no table"),
        ("| a |\n| 1 |\n| 2 |\n| 3 |", "line of dashes"),
        ("| a |\n|---|\n| 1 |", "two rows"),
    ):
        with pytest.raises(Unparseable, match=reason):
            table(bad)


def entry(kind="factual", topic="T", content="C"):
    return (
        f'<entry kind="{kind}">\n<topic>{topic}</topic>\n<content>\n{content}\n</content>\n</entry>'
    )


def test_entries_are_read_with_kind_topic_and_content():
    answer = "Sure!\n" + entry("Comparative", "A  b", "x\ny") + entry()
    assert read_entries(answer) == [Entry("comparative", "A b", "x\ny"), Entry("factual", "T", "C")]
    assert entries(answer) == "A b\nx\ny\n\nT\nC"


def test_letters_that_grow_in_lower_case_move_nothing():
    assert read_entries(entry(topic="İİİ", content="İx")) == [Entry("factual", "İİİ", "İx")]


def test_an_entry_cut_short_or_of_an_unknown_kind_is_left_out_and_takes_nothing_of_the_next():
    cut = '<entry kind="factual"><topic>T1</topic><content>never closed'
    assert read_entries(f"{cut}\n{entry(topic='T2')}") == [Entry("factual", "T2", "C")]
    assert read_entries(f"{entry('poetic')}{entry()}") == [Entry("factual", "T", "C")]
    with pytest.raises(Unparseable):
        read_entries(cut)


def test_no_more_entries_are_kept_than_were_asked_for():
    assert len(read_entries("\n".join(entry(kind) for kind in KINDS * 3))) == ENTRIES


def test_an_outline_is_read_under_all_marks():
    lines = [f"**{line.replace(': ', ':** ', 1)}" for line in outline_lines()]
    found = read_outline("\n".join(["# Plan", *lines, "- Appendix A: Words"]))
    assert found.title == "Bees"
    assert found.introduction == "All of them."
    assert found.chapters[9] == "Part 10 - what 10 is"
    assert found.appendices == ("Words",)


TITLES = st.text("abc -é", min_size=1).map(str.strip).filter(lambda t: t.strip("- "))


@given(title=TITLES, chapters=st.lists(TITLES, min_size=10, max_size=10), appendix=TITLES)
def test_an_outline_written_out_is_read_back_the_same(title, chapters, appendix):
    plan = Outline(title, "i", tuple(chapters), (appendix,))
    assert read_outline(format_outline(plan)) == plan


@pytest.mark.parametrize("leave_out", [0, 2, 11])
def test_an_outline_without_its_title_or_a_chapter_is_refused(leave_out):
    lines = outline_lines()
    del lines[leave_out]
    with pytest.raises(Unparseable):
        read_outline("\n".join(lines))


def test_a_chapter_has_a_body_exercises_and_answers():
    answer = "Body.\n\n## Exercises\n1. a\n\n**Answers:**\n1. b"
    assert chapter(answer) == "Body.\n\nExercises:\n1. a\n\nAnswers:\n1. b"


@pytest.mark.parametrize(
    "answer",
    [
        "Body.",
        "Body.\nAnswers:\nb\nExercises:\na",
        "Body.\nExercises:\n\nAnswers:\nb",
        "Exercises:\na\nAnswers:\nb",
        "Body.\nExercises:\na\nAnswers:\n",
    ],
)
def test_a_chapter_that_lacks_a_part_is_refused(answer):
    with pytest.raises(Unparseable):
        chapter(answer)
