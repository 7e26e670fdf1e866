"""CONTRIBUTING's way to a new prompted method, gone in a copy of the package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]

PROMPT = """---
name: haiku
version: 1
answer: haiku
---
Write a haiku about the document. Three lines, nothing else.

{{text}}
"""
PARSER = '''

def haiku(answer: str) -> str:
    """Three lines."""
    lines = [line.strip() for line in answer.strip().splitlines()]
    if len(lines) != 3:
        raise Unparseable(f"{len(lines)} lines, not 3")
    return "\\n".join(lines)


FORMS["haiku"] = haiku
'''
TEST = """
from scripted import write_with

def test_it_asks_and_parses_and_asks_again(make_prompted, documents):
    method = make_prompted("haiku", tries=2)
    item = next(method.items(0, 1))
    answers = iter(["one line", "old pond\\na frog jumps\\nsplash"])
    document, asked = write_with(method, item, lambda request: next(answers))
    assert documents[0].text in asked[0][0].prompt
    assert len(asked) == 2
    assert document.text == "old pond\\na frog jumps\\nsplash"
    assert document.prompt.startswith("haiku@")
    assert document.sampling["temperature"] == 0.8
"""


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path.name} has {text.count(old)} places like {old!r}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_new_method_is_a_prompt_file_a_parser_and_a_line_of_defaults(tmp_path):
    for folder in ("megatron_synth", "tests/synthesis"):
        shutil.copytree(
            REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    synthesis = tmp_path / "megatron_synth" / "synthesis"
    (synthesis / "prompts" / "haiku.md").write_text(PROMPT, encoding="utf-8")
    with (synthesis / "answers.py").open("a", encoding="utf-8") as answers:
        answers.write(PARSER)
    defaults = synthesis / "methods" / "defaults.py"
    edit(defaults, '    "self_distill",\n]', '    "self_distill",\n    "haiku",\n]')
    edit(
        defaults,
        '    "faq": _SYNPRO,\n',
        '    "faq": _SYNPRO,\n    "haiku": Defaults(0.8, 0.95, 128, 2048),\n',
    )
    (tmp_path / "tests" / "synthesis" / "test_haiku.py").write_text(TEST, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_haiku.py"],
        cwd=tmp_path / "tests" / "synthesis",
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    told = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for step in ("synthesis/prompts/NAME.md", "synthesis/answers.py", "methods/defaults.py"):
        assert step in told
