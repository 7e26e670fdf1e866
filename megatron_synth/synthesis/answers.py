"""The forms that answers have: what a model wrote to what a document says.

Each form is one function from an answer to the text of a document. It accepts what models do to a
form that they were shown (numbers, bold marks, a code fence, other spacing), writes the one form
that all documents share, and raises `Unparseable` with a reason where the answer has another form.
Texts of models are hostile input: every pattern here takes linear time.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

CHAPTERS = 10  # METHODS 1: an outline of ten chapters
ENTRIES = 8  # METHODS 1: up to eight entries
KINDS = ("factual", "analytical", "conceptual", "comparative", "problem-solving")

_BULLET = re.compile(r"^[\s#>*_-]*(?:\(?\d{1,3}[.):]\s*)?[\s*_]*")
_ENTRY = re.compile(r"<entry\b([^<>]*)>", re.IGNORECASE)
_KIND = re.compile(r"kind\s*=\s*[\"']?([\w-]+)", re.IGNORECASE)


class Unparseable(ValueError):  # noqa: N818  an answer is; nothing is wrong with the program
    """An answer has another form than was asked for; the message is the reason."""


@dataclass(frozen=True)
class Entry:
    """One entry of a reformatted document: its kind (one of `KINDS`), topic and content."""

    kind: str
    topic: str
    content: str


@dataclass(frozen=True)
class Outline:
    """The plan of a book: chapters as `title - what it treats`; appendices may be none."""

    title: str
    introduction: str
    chapters: tuple[str, ...]
    appendices: tuple[str, ...]


def text(answer: str) -> str:
    """Prose: all of it, without a code fence around the whole.

    Raises:
        Unparseable: There is no text.
    """
    lines = answer.strip().split("\n")
    if len(lines) > 2 and lines[0].startswith("```") and lines[-1].strip() == "```":
        lines = lines[1:-1]
    found = "\n".join(lines).strip()
    if not found:
        raise Unparseable("no text")
    return found


def question_answers(answer: str) -> str:
    """Pairs, each tagged `Question:` and `Answer:`, an empty line between two of them.

    Raises:
        Unparseable: There is no whole pair.
    """
    return _pairs(answer, "Question", "Answer")


def problems(answer: str) -> str:
    """Pairs, each tagged `Problem:` and `Solution:`, an empty line between two of them.

    Raises:
        Unparseable: There is no whole pair.
    """
    return _pairs(answer, "Problem", "Solution")


def table(answer: str) -> str:
    """A Markdown table with at least two rows, and the words after it.

    Raises:
        Unparseable: No table, or fewer than two rows in it.
    """
    lines = text(answer).split("\n")
    start = next((i for i, line in enumerate(lines) if _is_row(line)), None)
    if start is None:
        raise Unparseable("no table")
    end = start
    while end < len(lines) and _is_row(lines[end]):
        end += 1
    rows = [line.strip() for line in lines[start:end]]
    if len(rows) < 2 or not _is_rule(rows[1]):
        raise Unparseable("the table has no line of dashes under its column names")
    if len(rows) < 4:
        raise Unparseable("the table has fewer than two rows")
    words = "\n".join(lines[end:]).strip()
    return "\n".join(rows) + (f"\n\n{words}" if words else "")


def entries(answer: str) -> str:
    """Entries of a reformatted document, each as its topic, a colon, and its content.

    Raises:
        Unparseable: There is no whole entry.
    """
    return "\n\n".join(f"{entry.topic}\n{entry.content}" for entry in read_entries(answer))


def read_entries(answer: str) -> list[Entry]:
    """At most `ENTRIES` entries; one that is cut short, or of no known kind, is left out.

    Raises:
        Unparseable: There is no whole entry.
    """
    starts = list(_ENTRY.finditer(answer))
    ends = [following.start() for following in starts[1:]] + [len(answer)]
    found = []
    for start, end in zip(starts, ends, strict=False):  # one end too many where nothing starts
        kind = _KIND.search(start[1])
        body = answer[start.end() : end]
        topic, content = _tagged(body, "topic"), _tagged(body, "content")
        if kind and kind[1].lower() in KINDS and topic and content:
            found.append(Entry(kind[1].lower(), " ".join(topic.split()), content))
    if not found:
        raise Unparseable("no whole entry")
    return found[:ENTRIES]


def outline(answer: str) -> str:
    """The plan of a book in one form, a line each.

    Raises:
        Unparseable: No title, or not ten chapters.
    """
    return format_outline(read_outline(answer))


def read_outline(answer: str) -> Outline:
    """The plan of a book with its ten chapters, in order.

    Raises:
        Unparseable: No title, or not ten chapters.
    """
    tags = {"title": "", "introduction": ""}
    chapters: dict[int, str] = {}
    appendices = []
    for line in text(answer).split("\n"):
        name, colon, value = _unmarked(line).partition(":")
        words, value = name.lower().replace("*", "").split(), value.strip(" *_")
        if not colon or not value or not words:
            continue
        if len(words) == 1 and words[0] in tags:
            tags[words[0]] = tags[words[0]] or value
        elif len(words) == 2 and words[0] == "chapter" and words[1].isdecimal():
            chapters.setdefault(int(words[1]), value)
        elif len(words) <= 2 and words[0] == "appendix":
            appendices.append(value)
    if not tags["title"]:
        raise Unparseable("no title")
    wanted = range(1, CHAPTERS + 1)
    if sorted(chapters) != list(wanted):
        raise Unparseable(f"{len(chapters)} numbered chapters, not 1 to {CHAPTERS}")
    ordered = tuple(chapters[number] for number in wanted)
    return Outline(tags["title"], tags["introduction"], ordered, tuple(appendices))


def format_outline(plan: Outline) -> str:
    """The plan as `read_outline` reads it."""
    lines = [f"Title: {plan.title}"]
    lines += [f"Introduction: {plan.introduction}"] * bool(plan.introduction)
    lines += [f"Chapter {n}: {chapter}" for n, chapter in enumerate(plan.chapters, 1)]
    lines += [f"Appendix {chr(65 + n % 26)}: {title}" for n, title in enumerate(plan.appendices)]
    return "\n".join(lines)


def chapter(answer: str) -> str:
    """A chapter with exercises, then their answers.

    Raises:
        Unparseable: A part is missing or empty, or the answers stand before the exercises.
    """
    lines = text(answer).split("\n")
    names = [_unmarked(line).rstrip(" :*_").lower() for line in lines]
    try:
        exercises = names.index("exercises")
        answers = names.index("answers", exercises + 1)
    except ValueError:
        raise Unparseable("no line 'Exercises:' with a line 'Answers:' after it") from None
    parts = [lines[:exercises], lines[exercises + 1 : answers], lines[answers + 1 :]]
    body, tasks, solutions = ("\n".join(part).strip() for part in parts)
    if not (body and tasks and solutions):
        raise Unparseable("the chapter, its exercises or its answers are empty")
    return f"{body}\n\nExercises:\n{tasks}\n\nAnswers:\n{solutions}"


FORMS: dict[str, Callable[[str], str]] = {
    "text": text,
    "qa": question_answers,
    "problems": problems,
    "table": table,
    "entries": entries,
    "outline": outline,
    "chapter": chapter,
}
"""By name, as prompt files give it."""


def _pairs(answer: str, first: str, second: str) -> str:
    """Pairs of tagged texts; a first without its second, and the reverse, is left out."""
    parts: list[tuple[str, list[str]]] = []
    for line in text(answer).split("\n"):
        bare = _unmarked(line)
        tag = next((t for t in (first, second) if _after_tag(bare, t) is not None), None)
        if tag is not None:
            parts.append((tag, [_after_tag(bare, tag) or ""]))
        elif parts:
            parts[-1][1].append(line.rstrip())
    texts = [(tag, "\n".join(lines).strip()) for tag, lines in parts]
    return "\n\n".join(_whole_pairs(texts, first, second))


def _whole_pairs(texts: Sequence[tuple[str, str]], first: str, second: str) -> list[str]:
    pairs = [
        f"{first}: {asked}\n{second}: {answered}"
        for (tag, asked), (following, answered) in pairwise(texts)
        if (tag, following) == (first, second) and asked and answered
    ]
    if not pairs:
        raise Unparseable(f"no {first.lower()} with its {second.lower()}")
    return pairs


def _after_tag(line: str, tag: str) -> str | None:
    """What follows `tag` and a colon at the line's beginning; None where they are not there.

    A number and bold marks may stand between them: `**Question 3:** …`.
    """
    if line[: len(tag)].lower() != tag.lower():
        return None
    name, colon, rest = line[len(tag) :].partition(":")
    number = name.strip(" *_")
    if not colon or len(number) > 3 or (number and not number.isdecimal()):
        return None
    return rest.strip(" *_")


def _is_row(line: str) -> bool:
    bare = line.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == "|"


def _is_rule(line: str) -> bool:
    return "-" in line and not set(line) - set(" \t|:-")


def _unmarked(line: str) -> str:
    """A line without the marks and the number that lists and headings put before it."""
    return line[len(_BULLET.match(line)[0]) :]  # type: ignore[index]  # it matches every line


def _tagged(body: str, tag: str) -> str:
    """What stands between the first `<tag>` and the next `</tag>`; empty where one is missing."""
    opened = re.search(f"<{tag}>", body, re.IGNORECASE)
    closed = opened and re.compile(f"</{tag}>", re.IGNORECASE).search(body, opened.end())
    return body[opened.end() : closed.start()].strip() if opened and closed else ""
