"""`synthesize stitch` and `stretch` on the command line."""

import json

import pytest
import typer.testing

from megatron_synth.cli import app, main
from megatron_synth.corpus import Document, read_documents, write_documents
from megatron_synth.runs import read_manifest


@pytest.fixture
def folder(tmp_path):
    organic = [Document(f"d{n}", f"organic {n}") for n in range(3)]
    generated = [
        Document(f"d{n}-{g}", f"generation {g} of {n}", source_id=f"d{n}", metadata={"cut": 3})
        for n in range(3)
        for g in range(2)
    ]
    write_documents(tmp_path / "organic.jsonl", organic)
    write_documents(tmp_path / "a.jsonl", generated[:3])
    write_documents(tmp_path / "b.jsonl", generated[3:])
    return tmp_path


def run(*words):
    return typer.testing.CliRunner().invoke(app, ["synthesize", *map(str, words)])


def inputs(folder):
    files = ("--generated", folder / "a.jsonl", "--generated", folder / "b.jsonl")
    return ("--documents", folder / "organic.jsonl", *files)


def test_stitch_makes_a_corpus_with_its_manifest_and_is_done_once(folder):
    out = folder / "out"
    words = ("stitch", *inputs(folder), "--out", out, "real=first", "--json")
    ran = run(*words)
    assert ran.exit_code == 0, ran.output
    counts = json.loads(ran.stdout)
    assert (counts["documents"], counts["members"]) == (3, 6)
    megadocs = list(read_documents(out))
    assert [megadoc.parts[0] for megadoc in megadocs] == [f"organic {n}" for n in range(3)]
    manifest = read_manifest(out)
    assert (manifest.kind, manifest.config["real"]) == ("stitch", "first")
    written = (out / "documents.jsonl.zst").stat().st_mtime_ns
    assert json.loads(run(*words).stdout) == counts
    assert (out / "documents.jsonl.zst").stat().st_mtime_ns == written


def test_stretch_says_what_became_of_the_generations(folder):
    ran = run("stretch", *inputs(folder), "--out", folder / "out")
    assert ran.exit_code == 0, ran.output
    assert "6 generations: 3 documents with 2" in ran.stdout
    (first, *_) = read_documents(folder / "out")
    thoughts = [f"<think>\ngeneration {g} of 0\n</think>" for g in range(2)]
    assert first.text == f"org{''.join(thoughts)}anic 0"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stitch", "--documents", "x", "--out", "o"], "--generated: stitch joins"),
        (["stretch", "--generated", "x", "--out", "o"], "--documents: stretch joins"),
        (["rephrase_hq", "--documents", "x", "--out", "o"], "--model: rephrase_hq is written by"),
        (
            ["sbp", "--documents", "x", "--out", "o", "--model", "m", "--generated", "y"],
            "--generated: sbp stitches nothing",
        ),
        (["stitch", "--documents", "x", "--generated", "y", "--out", "o", "reel=last"], "real"),
    ],
)
def test_what_is_missing_or_wrong_is_said_in_one_message(
    words, message, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["megatron-synth", "synthesize", *words])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    assert message in capsys.readouterr().err
