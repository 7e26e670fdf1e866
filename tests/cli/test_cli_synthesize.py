"""`synthesize` as a user meets it: an endpoint that really answers, vLLM, a kill, mistakes."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from writing_endpoint import Server, serve, write_inputs

from megatron_synth.cli import app, main
from megatron_synth.corpus import read_documents
from megatron_synth.runs import read_manifest

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

VERB = [sys.executable, "-m", "megatron_synth.cli", "synthesize"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_inputs(tmp_path)
    (tmp_path / "mine.md").write_text(
        "---\nname: mine\nversion: 1\nanswer: text\n---\nRetell: {{text}}\n"
    )
    return tmp_path


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as found:
        yield found


def run(folder: Path, *arguments: str, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*VERB, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=environment(),
    )


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def arguments(server: Server | None = None, *more: str) -> list[str]:
    given = ["--documents", "documents.jsonl.zst", "--model", "model", "--out", "out", *more]
    if server is None:
        return given
    settings = ["engine.kind=endpoint", f"engine.url={server.url}", "engine.model=writer"]
    return [*given, *settings, "ray.executor=inline", "filters.min_tokens=5"]


def test_an_endpoint_writes_a_corpus_with_provenance_and_a_second_time_costs_nothing(
    folder, server
):
    command = ["faq", *arguments(server, "--generations", "2", "--json")]
    first = run(folder, *command)
    assert first.returncode == 0, first.stderr
    counts = json.loads(first.stdout)
    assert counts["documents"] == counts["requests"] == len(server.asked) == 24
    assert len({body["seed"] for body in server.asked}) == 24
    made = list(read_documents(folder / "out" / "documents.jsonl.zst"))
    assert {(d.source_id, d.generation) for d in made} == {
        (f"doc-{n}", g) for n in range(12) for g in range(2)
    }
    assert all(d.generator.startswith("writer@") for d in made)
    assert all(d.prompt.startswith("faq@") for d in made)
    manifest = read_manifest(folder / "out")
    assert set(manifest.files) == {
        "README.md", "counts.json", "documents.jsonl.zst", "dropped.jsonl.zst",
        "requests-00000.log",
    }  # fmt: skip
    assert manifest.config["method"] == "faq"
    again = run(folder, *command)
    assert json.loads(again.stdout) == counts
    assert "done already" in again.stderr
    assert len(server.asked) == 24
    other = run(folder, "faq", *arguments(server))
    assert other.returncode == 2
    assert "holds another product" in other.stderr


def test_words_for_people_say_what_was_made_and_what_was_cut(folder, server):
    done = run(folder, "rephrase_qa", *arguments(server), "max_input_tokens=30")
    assert done.returncode == 0, done.stderr
    assert "12 documents" in done.stdout
    assert "12 requests; dropped: none" in done.stdout
    assert "12 inputs_cut" in done.stdout


@pytest.fixture
def own_logger() -> Iterator[None]:
    """Put back what the command line does to the package's logger."""
    logger = logging.getLogger("megatron_synth")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    logger.handlers, logger.level, logger.propagate = before


DOCUMENTS = ["--documents", "documents.jsonl.zst"]
OUT = ["--out", "out"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["rephrase_qh", *DOCUMENTS, "--model", "model", *OUT], "'rephrase_hq'"),
        (["faq", "--model", "model", *OUT], "--documents: faq needs source documents"),
        (["self_distill", *DOCUMENTS, "--model", "model", *OUT, "tokens=9"], "has no source"),
        (["faq", *DOCUMENTS, "--model", "none", *OUT], "none: no such folder"),
        (["faq", "--documents", "no.jsonl", "--model", "model", *OUT], "no.jsonl"),
        (["faq", *DOCUMENTS, "--model", "model", *OUT], "no *.safetensors weights"),
        (["sbp", *DOCUMENTS, "--model", "model", *OUT], "draws without end: set tokens"),
        (
            ["faq", *DOCUMENTS, "--model", "model", *OUT, "--prompt-file", "wrong.md"],
            "nothing fills {{txt}}",
        ),
        (
            ["faq", *DOCUMENTS, "--model", "model", *OUT, "--generations", "2", "generations=3"],
            "generations is set twice",
        ),
    ],
)
def test_a_mistake_is_one_message_and_status_2(
    folder, command, message, monkeypatch, capsys, own_logger
):
    header = "---\nname: mine\nversion: 1\nanswer: text\n---\n"
    (folder / "wrong.md").write_text(f"{header}Retell {{{{txt}}}}\n")
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as left:
        main(lambda: app(["synthesize", *command]))
    assert left.value.code == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""
    assert not (folder / "out").exists()


def test_help_shows_an_example():
    done = run(Path.cwd(), "--help")
    assert "Example: megatron-synth synthesize rephrase_hq --documents" in " ".join(
        done.stdout.split()
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_vllm_killed_in_the_middle_writes_every_document_once(folder):
    from tiny_llama import save_tiny_llama

    vocabulary = 320 + 8
    save_tiny_llama(folder / "model", vocab_size=vocabulary, context=2048)
    command = [
        "rephrase_hq",
        *arguments(None, "--prompt-file", "mine.md", "--generations", "8", "--json"),
        *("ray.executor=inline", "engine.concurrency=4", "max_output_tokens=60"),
        *("filters.finished=false", "filters.min_tokens=0", "filters.repeated_shingle=false"),
    ]
    log = folder / "out" / "requests-00000.log"
    with (folder / "stderr.txt").open("w") as errors:
        first = subprocess.Popen(
            [*VERB, *command], cwd=folder, env=environment(), stdout=errors, stderr=errors
        )
        give_up = time.monotonic() + 600
        while first.poll() is None and len(answered(log)) < 12:
            assert time.monotonic() < give_up
            time.sleep(0.02)
        assert first.poll() is None, (folder / "stderr.txt").read_text()[-3000:]
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    before = answered(log)
    assert len(before) < 96
    done = run(folder, *command, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    after = answered(log)
    assert before.items() <= after.items()
    counts = json.loads(done.stdout)
    assert counts["asked_again"] <= 4
    assert counts["requests"] == len(after)
    made = [
        document
        for name in ("documents", "dropped")
        for document in read_documents(folder / "out" / f"{name}.jsonl.zst")
    ]
    assert {(d.source_id, d.generation) for d in made} == {
        (f"doc-{n}", g) for n in range(12) for g in range(8)
    }
    assert len(made) == 96
    assert len({d.text for d in made}) > 80  # the generations differ


def answered(log: Path) -> dict[str, str]:
    """Whole answer records, by key, read without the code under test."""
    lines = log.read_text().splitlines(keepends=True) if log.is_file() else []
    records = [line.split(" ", 3) for line in lines if line.endswith("\n")]
    keys = [record[2] for record in records if record[1] == "A"]
    assert len(keys) == len(set(keys)), "a key is answered twice"
    return {record[2]: record[3] for record in records if record[1] == "A"}
