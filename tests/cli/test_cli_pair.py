"""The verb `pair`: a corpus and a model, or an encoder, to pairs."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import typer.testing
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_synth.cli import app, main
from megatron_synth.corpus import Document, write_documents
from megatron_synth.runs import read_manifest
from megatron_synth.tokens import train_tokenizer

TOPICS = (
    ("the river", "water", "fish", "boat", "stream", "bank"),
    ("the court", "judge", "law", "trial", "appeal", "verdict"),
    ("the engine", "piston", "fuel", "gear", "valve", "torque"),
)
PAIRING = ("pairing.min_pairs=5", "pairing.neighbours=10")


def texts(each=12):
    generator = np.random.default_rng(0)
    for number in range(each * len(TOPICS)):
        words = TOPICS[number % len(TOPICS)]
        yield " ".join(generator.choice(words, 40))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
    write_documents(path, [Document(f"d{i}", text) for i, text in enumerate(texts())])
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    train_tokenizer(list(texts()), 300, folder)
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=64, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def run(*words):
    return typer.testing.CliRunner().invoke(app, ["pair", *map(str, words)])


def answer(ran):
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


def test_related_documents_become_pairs_and_a_second_run_costs_nothing(corpus, model, tmp_path):
    out = tmp_path / "pairs"
    words = (corpus, "--model", model, "--out", out, "pairing.threshold=0.3", *PAIRING)
    counts = answer(run(*words, "--json"))
    pairs = pq.read_table(out / "pairs.parquet").to_pydict()
    assert len(pairs["d1"]) == counts["pairs"] > 50
    same = [a % 3 == b % 3 for a, b in zip(pairs["d1"], pairs["d2"], strict=True)]
    assert np.mean(same) > 0.95
    assert counts["embedding"]["documents"] == 36
    assert (read_manifest(out).kind, read_manifest(out / "embeddings").kind) == ("pair", "embed")
    assert json.loads((out / "report.json").read_text())["counts"]["pairs"] == counts["pairs"]
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert answer(run(*words, "--json")) == counts
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    assert f"{counts['pairs']} pairs with a similarity over 0.3000" in run(*words).stdout


def test_after_a_refused_threshold_nothing_is_embedded_again(corpus, model, tmp_path, monkeypatch):
    out = tmp_path / "pairs"
    words = (corpus, "--model", model, "--out", out, *PAIRING)
    refused = run(*words, "pairing.threshold=0.9999")
    assert "fewer than min_pairs" in str(refused.exception)
    monkeypatch.setattr("megatron_synth.engines.embedding.TorchEncoder", None)  # it must not run
    first = answer(run(*words, "pairing.threshold=0.3", "--json"))
    other = tmp_path / "other"
    words = (corpus, "--embeddings", out / "embeddings", "--out", other, *PAIRING)
    second = answer(run(*words, "pairing.threshold=0.5", "--json"))
    assert 5 <= second["pairs"] < first["pairs"]
    assert sorted(p.name for p in other.iterdir()) == [
        "manifest.json",
        "pairs.parquet",
        "report.json",
    ]


def test_the_probe_s_figures_are_shown(corpus, model, tmp_path):
    words = (corpus, "--model", model, "--out", tmp_path / "o", "embedding.layer=probe")
    ran = run(*words, "pairing.threshold=0.3", *PAIRING)
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.count("mean reciprocal rank") == 2
    assert ran.stdout.count("<- chosen") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing says how to embed"),
        (["--model", "m", "--encoder", "e"], "--model and --encoder are both given"),
        (["--model", "nowhere"], "nowhere: no such folder"),
        (["--encoder", "./nowhere"], "encoder: ./nowhere: no such folder"),
        (["--embeddings", "."], "no embeddings.npy and ids.parquet there"),
        (["--encoder", "e", "pairing.treshold=1"], "threshold"),
        (["--encoder", "e", "embedding.encoder=f"], "encoder is set twice"),
    ],
)
def test_mistakes_get_one_message(words, message, corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["megatron-synth", "pair", str(corpus), "--out", "o", *words]
    monkeypatch.setattr("sys.argv", given)
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_corpus_is_named(model, tmp_path, monkeypatch, capsys):
    given = ["megatron-synth", "pair", "nowhere.jsonl", "--model", str(model), "--out", "o"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", given)
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_help_shows_an_example():
    shown = typer.testing.CliRunner().invoke(app, ["pair", "--help"]).stdout
    assert "Example: megatron-synth pair" in shown


@pytest.mark.slow
def test_kill_9_loses_no_finished_shard_and_changes_no_byte(corpus, model, tmp_path):
    words = [str(corpus), "--model", str(model), "pairing.threshold=0.3", *PAIRING]
    words += ["embedding.shard_documents=2", "embedding.batch_tokens=64"]
    command = [sys.executable, "-m", "megatron_synth.cli", "pair", *words, "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, whole], env=environment, check=True, capture_output=True)
    process = subprocess.Popen([*command, killed], env=environment, stderr=subprocess.DEVNULL)
    shards = killed / "embeddings" / ".shards"
    while process.poll() is None and len(list(shards.glob("*.npy"))) < 3:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([*command, killed], env=environment, check=True, capture_output=True)
    for name in ("embeddings/embeddings.npy", "embeddings/ids.parquet", "pairs.parquet"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert sorted(p.name for p in (killed / "embeddings").iterdir()) == [
        "embeddings.npy",
        "ids.parquet",
        "manifest.json",
    ]
