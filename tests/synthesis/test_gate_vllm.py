"""The gate as a user runs it: the verb, Ray, vLLM as generator and as judge, killed in both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from killing import PATIENCE, count_questions, kill_driver, read_answers, still_there, wait_for
from killing import family as family_of

from megatron_synth.corpus import read_documents, write_documents
from megatron_synth.runs import write_json
from megatron_synth.synthesis import DOCUMENTS
from megatron_synth.tokens import train_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

CONCURRENCY = 8
SAMPLES = 60
SETTINGS = {
    "tokens": 20_000,
    "max_output_tokens": 100,
    "filters": {"finished": False, "min_tokens": 20},
    "engine": {"concurrency": CONCURRENCY},
}
GATE = {"samples": SAMPLES, "min_judged_share": 0.4, "engine": {"concurrency": 1}}


@pytest.fixture
def folder(tmp_path, documents):
    """Documents, a random generator, and two judges of one word."""
    from tiny_llama import save_parrot, save_tiny_llama

    write_documents(tmp_path / "documents.jsonl.zst", documents)
    tokenizer = train_tokenizer([d.text for d in documents], 320, tmp_path / "model")
    save_tiny_llama(tmp_path / "model", vocab_size=tokenizer.vocab_size + 8, context=1024)
    for word in ("relevant", "irrelevant"):
        save_parrot(tmp_path / word, word)
    return tmp_path


def start(folder: Path, judge: str, **limits: float) -> "subprocess.Popen[bytes]":
    gate = {**GATE, "judge": str(folder / judge), **limits}
    write_json(folder / "settings.json", {**SETTINGS, "mideval": gate})
    command = [
        *(sys.executable, "-m", "megatron_synth.cli", "synthesize", "sbp"),
        *("--documents", str(folder / "documents.jsonl.zst"), "--model", str(folder / "model")),
        *("--out", str(folder / "out"), "--config", str(folder / "settings.json"), "--json"),
    ]
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as log:
        return subprocess.Popen(command, stdout=out, stderr=log, env=environment())


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_killed_in_both_halves_the_gate_asks_nothing_twice_and_stops_or_passes(folder):
    requests = folder / "out" / "requests-00000.log"

    def judge_log():
        return next((folder / "out" / ".work").glob("judge-*.log"), folder / "none")

    def wait_until(condition, what):
        wait_for(lambda: condition() or driver.poll() is not None, what)
        assert driver.poll() is None, (folder / "stderr").read_text()[-3000:]

    # It dies while the first documents are generated,
    driver = start(folder, "irrelevant", max_irrelevant=0.5)
    wait_until(lambda: len(read_answers(requests)) >= 10, "answers")
    kill_driver(driver)
    generated = read_answers(requests)
    assert len(generated) < SAMPLES

    # and dies again while they are judged.
    driver = start(folder, "irrelevant", max_irrelevant=0.5)
    wait_until(lambda: len(read_answers(judge_log())) >= 5, "verdicts")
    family = family_of(driver)
    driver.kill()
    driver.wait()
    wait_for(lambda: not still_there(family), "the end of all processes")
    judged = read_answers(judge_log())
    sample = read_answers(requests)
    assert generated.items() <= sample.items()
    assert not (folder / "out" / "mideval.json").exists()

    # The third try judges what is left, and stops before the rest is generated.
    driver = start(folder, "irrelevant", max_irrelevant=0.5)
    assert driver.wait(PATIENCE) == 1
    said = (folder / "stderr").read_text()
    assert "irrelevant 100.0% (max_irrelevant 50.0%)" in said
    assert "Traceback" not in said
    assert read_answers(requests) == sample
    verdicts = read_answers(judge_log())
    assert judged.items() <= verdicts.items()
    assert len(judged) < len(verdicts)
    assert count_questions(judge_log()) <= len(verdicts) + 1  # one was open at the kill
    report = json.loads((folder / "out" / "mideval.json").read_text())
    figures = report["figures"]
    assert figures["irrelevant_samples"] == figures["unparseable"] == len(verdicts) / 2
    assert figures["failed"] == 0
    assert report["judge"].startswith("irrelevant@")

    # Another judge lets it go on: what was generated stays, and is asked for no more.
    driver = start(folder, "relevant", max_irrelevant=0.5)
    assert driver.wait(PATIENCE) == 0, (folder / "stderr").read_text()[-3000:]
    counts = json.loads((folder / "stdout").read_text())
    final = read_answers(requests)
    assert sample.items() <= final.items()
    assert count_questions(requests) - len(final) <= 2 * CONCURRENCY
    assert counts["requests"] + counts["surplus_requests"] == len(final)
    assert counts["tokens"] >= SETTINGS["tokens"]
    kept = list(read_documents(folder / "out" / DOCUMENTS))
    assert len({document.id for document in kept}) == len(kept) == counts["documents"]
    report = json.loads((folder / "out" / "mideval.json").read_text())
    assert report["figures"]["irrelevant"] == 0
    assert report["stopped_by"] is None
