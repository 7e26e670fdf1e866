"""`corpus quality` and `corpus concepts` as a user meets them: a judge behind a real endpoint."""

import json
import sys
from pathlib import Path

import pytest
import typer.testing

from megatron_synth.cli import app, main
from megatron_synth.corpus import Document, write_documents
from megatron_synth.runs import read_manifest

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from faulty_server import answer, serving

CONCEPT = "First: a source\nShared: numbers\nSecond: a text"


@pytest.fixture
def folder(tmp_path):
    real = [Document(f"d{n}", f"source text number {'x' * (n + 1)}") for n in range(6)]
    made = [Document(f"s{n}", f"new text of {'y' * (n + 1)}", source_id=f"d{n}") for n in range(5)]
    write_documents(tmp_path / "real.jsonl", real)
    write_documents(
        tmp_path / "made.jsonl", [*made, Document("copy", real[5].text, source_id="d5")]
    )
    return tmp_path


def run(*words):
    return typer.testing.CliRunner().invoke(app, ["corpus", *map(str, words)])


def quality(folder, *more):
    files = (folder / "made.jsonl", "--documents", folder / "real.jsonl")
    return run("quality", *files, "--out", folder / "out", *more)


def url(server):
    return f"http://127.0.0.1:{server.server_port}/v1"


def say(body, _):
    asked = body["messages"][0]["content"]
    if asked.endswith("error."):
        return 200, answer(body, "no error")
    if asked.startswith("Two texts follow. Decide"):
        return 200, answer(body, "irrelevant" if "of yyy\n" in asked else "relevant")
    return 200, answer(body, CONCEPT)


def test_the_table_without_a_judge_is_printed_with_the_papers_figures(folder):
    ran = quality(folder)
    assert ran.exit_code == 0, ran.output
    lines = ran.stdout.splitlines()
    assert lines[1].startswith("synthetic") and "16.7% (3.0% to 56.4%)" in lines[1]  # the copy
    assert lines[2].startswith("real")
    assert any(line.startswith("SBP, 1T scale") and "7.8%" in line for line in lines)
    table = json.loads((folder / "out" / "quality.json").read_text())
    assert table["synthetic"]["copying"]["count"] == 1
    assert table["synthetic"]["non_factual"] is None


def test_a_judge_is_asked_once_and_a_finished_table_costs_nothing(folder):
    with serving(say) as server:
        words = (
            "engine.kind=endpoint",
            f"engine.url={url(server)}",
            "engine.model=judge",
            "--json",
        )
        ran = quality(folder, *words)
        assert ran.exit_code == 0, ran.output
        found = json.loads(ran.stdout)
        assert found["synthetic"]["irrelevance"]["count"] == 1
        assert found["real"]["non_factual"]["of"] == 6
        assert len(server.asked) == 6 + 6 + 6
        assert json.loads(quality(folder, *words).stdout) == found
        assert len(server.asked) == 18
    assert sorted(p.name for p in (folder / "out").iterdir()) == [
        "judge.log",
        "manifest.json",
        "quality.json",
    ]
    assert read_manifest(folder / "out").kind == "quality"


def test_what_a_judge_answered_before_a_failure_is_not_asked_again(folder):
    answers = {"count": 0}

    def failing(body, times):
        answers["count"] += 1
        return (401, {"error": "no"}) if answers["count"] > 7 else say(body, times)

    engine = ("engine.kind=endpoint", "engine.model=judge", "engine.concurrency=1")
    with serving(failing) as server:
        at = f"engine.url={url(server)}"
        failed = quality(folder, *engine, at)
        assert failed.exception is not None
        assert not (folder / "out" / "quality.json").exists()
        server.script = say
        before = len(server.asked)
        assert quality(folder, *engine, at).exit_code == 0
        assert len(server.asked) - before == 18 - 7


def test_concepts_are_written_and_shown(folder):
    files = (folder / "made.jsonl", "--documents", folder / "real.jsonl", "--out", folder / "out")
    with serving(say) as server:
        ran = run(
            "concepts", *files, "samples=4", "engine.kind=endpoint", f"engine.url={url(server)}",
            "engine.model=judge",
        )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.count("a source | numbers | a text") == 4
    assert "4 of 4 pairs, 1 different concepts" in ran.stdout
    assert len((folder / "out" / "concepts.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quality", "nothing.jsonl", "--out", "out"], "nothing.jsonl"),
        (["quality", "made.jsonl", "--out", "out", "sample=5"], "samples"),
        (["quality", "made.jsonl", "--out", "out", "--judge", "nowhere"], "nowhere"),
        (["quality", "made.jsonl", "--out", "out", "engine.kind=vllm"], "judge's folder"),
        (["concepts", "made.jsonl", "--documents", "real.jsonl", "--out", "out"], "--judge"),
        (["quality", "made.jsonl", "--documents", "few.jsonl", "--out", "out"], "'d1'"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(folder, words, said, monkeypatch, capsys):
    write_documents(folder / "few.jsonl", [Document("d0", "only one")])
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["megatron-synth", "corpus", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message
