"""Textbooks: a plan for one of four audiences, ten chapters from the plan alone, one book."""

import re

import pytest
from scripted import write_with

from megatron_synth.config import ConfigError
from megatron_synth.engines import Completion

PLAN = "\n".join(
    ["Title: Bees", "Introduction: All about bees."]
    + [f"Chapter {n}: Part {n} - what bees do in part {n}" for n in range(1, 11)]
    + ["Appendix A: A list of bees"]
)
AUDIENCES = {"grade school", "college", "experts", "general public"}


def is_plan(request):
    return "\nPlan:" in request.prompt


def chapter_of(request):
    return int(re.search(r"\nChapter (\d+): [^\n]*\Z", request.prompt)[1])


def chapter(number):
    return f"Text of {number}.\nExercises:\n1. Count to {number}.\nAnswers:\n1. {number}"


def whole(request):
    return PLAN if is_plan(request) else chapter(chapter_of(request))


def test_the_plan_comes_from_the_document_and_the_chapters_from_the_plan_alone(make_prompted):
    method = make_prompted("textbook")
    item = next(method.items(0, 1))
    document, asked = write_with(method, item, whole)
    [[plan], chapters] = asked
    source = method.source_text(item)
    assert source in plan.prompt
    assert [chapter_of(request) for request in chapters] == list(range(1, 11))
    for request in chapters:
        assert PLAN in request.prompt
        assert source not in request.prompt
    assert len({r.key for r in [plan, *chapters]}) == 11
    assert len({r.sampling.seed for r in [plan, *chapters]}) == 11
    assert document.metadata["requests"] == 11
    assert document.seed == item.seed


def test_the_book_has_its_title_introduction_and_chapters_in_order(make_prompted):
    method = make_prompted("textbook")
    document, _ = write_with(method, next(method.items(0, 1)), whole)
    assert document.text.startswith("Bees\n\nAll about bees.\n\nChapter 1: Part 1\n\nText of 1.")
    places = [document.text.index(f"Chapter {n}: Part {n}\n") for n in range(1, 11)]
    assert places == sorted(places)
    assert document.text.count("Exercises:") == document.text.count("Answers:") == 10
    assert document.metadata["title"] == "Bees"
    outline, chapters = document.prompt.split("+")
    assert outline.startswith("textbook_outline@")
    assert chapters.startswith("textbook_chapter@")


def test_the_audience_is_drawn_by_the_items_seed_and_told_to_every_step(make_prompted):
    method = make_prompted("textbook", generations=2)
    drawn = set()
    for item in method.items(0, 1):
        document, asked = write_with(method, item, whole)
        audience = document.metadata["audience"]
        drawn.add(audience)
        assert all(audience in r.prompt for requests in asked for r in requests)
        assert write_with(method, item, whole)[0] == document
    assert drawn == AUDIENCES


def test_audiences_can_be_chosen(make_prompted):
    method = make_prompted("textbook", audiences=["experts"])
    books = [write_with(method, item, whole)[0] for item in list(method.items(0, 1))[:10]]
    assert {book.metadata["audience"] for book in books} == {"experts"}


def test_a_chapter_that_fails_alone_is_asked_again_alone(make_prompted):
    method = make_prompted("textbook")
    failures = {3: 1, 7: 2}

    def script(request):
        if not is_plan(request) and failures.get(chapter_of(request), 0) > 0:
            failures[chapter_of(request)] -= 1
            return "No exercises today."
        return whole(request)

    document, asked = write_with(method, next(method.items(0, 1)), script)
    steps = [[chapter_of(r) for r in requests] for requests in asked[1:]]
    assert steps == [list(range(1, 11)), [3, 7], [7]]
    assert document.finish_reason == "stop"
    assert document.text.count("Exercises:") == 10


def test_a_book_without_a_plan_or_with_a_missing_chapter_is_a_failure_that_says_why(make_prompted):
    method = make_prompted("textbook", tries=2)
    item = next(method.items(0, 1))
    document, asked = write_with(method, item, lambda request: "Title: Bees")
    assert [len(requests) for requests in asked] == [1, 1]
    assert document.metadata["failure"] == "unparseable"
    assert document.metadata["failure_message"] == "0 numbered chapters, not 1 to 10"

    def no_fifth(request):
        if not is_plan(request) and chapter_of(request) == 5:
            return Completion.failed(request.key, "too long", transient=False)
        return whole(request)

    document, _ = write_with(method, item, no_fifth)
    assert (document.text, document.finish_reason) == ("", "error")
    assert document.metadata["failure_message"] == "too long"


def test_what_a_plan_says_cannot_fill_in_the_next_prompt(make_prompted):
    hostile = PLAN.replace("what bees do in part 2", "{{chapter}} {{audience}}")

    def script(request):
        return hostile if is_plan(request) else whole(request)

    method = make_prompted("textbook")
    _, [_, chapters] = write_with(method, next(method.items(0, 1)), script)
    assert all("{{chapter}} {{audience}}" in request.prompt for request in chapters)


def test_users_prompts_are_told_apart_by_their_fields(make_prompted, tmp_path):
    header = "---\nname: mine_{0}\nversion: 1\nanswer: {0}\n---\n"
    chapters = tmp_path / "chapters.md"
    chapters.write_text(header.format("text") + "{{audience}} {{outline}}\nPlease: {{chapter}}")
    method = make_prompted("textbook", prompt_file=chapters)
    item = next(method.items(0, 1))
    document, asked = write_with(method, item, lambda r: PLAN if is_plan(r) else "A chapter.")
    assert asked[1][0].prompt.endswith("Please: Chapter 1: Part 1 - what bees do in part 1")
    assert document.text.count("A chapter.") == 10
    assert re.fullmatch(r"textbook_outline@\w+\+mine_text@\w+", document.prompt)

    plan = tmp_path / "plan.md"
    plan.write_text(header.format("text") + "{{audience}} {{text}}")
    with pytest.raises(ConfigError, match="must have the form outline"):
        make_prompted("textbook", prompt_file=[plan, chapters])
    other = tmp_path / "other.md"
    other.write_text(header.format("text") + "{{chapter}}")
    with pytest.raises(ConfigError, match="fields are wrong"):
        make_prompted("textbook", prompt_file=other)


def test_a_plan_from_pieces_is_refused(make_prompted):
    with pytest.raises(ConfigError, match="planned from one text"):
        make_prompted("textbook", long_input="chunk")
