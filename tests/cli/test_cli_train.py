"""`train` as a user meets it: a file, overrides, an answer, and one message for a mistake."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from megatron_synth.cli import app, main
from megatron_synth.packing import PackConfig, pack
from megatron_synth.runs import Progress, read_metrics
from megatron_synth.tokens import Tokenizer, train_tokenizer

SIZES = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "ffn_hidden_size": 96,
}
TRAINING = {"micro_batch_size": 2, "save_every": 2, "keep_checkpoints": 9, "eval_every": 2}
CONSTANT = {"kind": "constant", "peak": 3e-3, "warmup_steps": 0}


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


@pytest.fixture
def cli(capsys, monkeypatch, world):
    """cli(arguments...) -> Done: the command line in this process."""
    logger = logging.getLogger("megatron_synth")
    before = (list(logger.handlers), logger.level, logger.propagate)
    monkeypatch.chdir(world)

    def cli(*arguments: str) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main(lambda: app([str(argument) for argument in arguments]))
        shown = capsys.readouterr()
        status = leaving.value.code
        return Done(0 if status is None else status, shown.out, shown.err)

    yield cli
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two packed corpora, a validation corpus, their tokenizer, plans of two phases."""
    folder = tmp_path_factory.mktemp("world")
    words = [f"word{n}" for n in range(60)]

    def texts(seed, number=40):
        random = np.random.default_rng(seed)
        return [" ".join(random.choice(words, random.integers(20, 60))) for _ in range(number)]

    train_tokenizer(texts(0), 300, folder / "tokenizer")
    train_tokenizer(["quite other texts, of which others are made"] * 9, 270, folder / "other")
    tokenizer = Tokenizer.load(folder / "tokenizer")
    for seed, name in enumerate(("organic", "synthetic", "validation")):
        rows = [json.dumps({"id": str(n), "text": text}) for n, text in enumerate(texts(seed, 30))]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
        source = str(folder / f"{name}.jsonl")
        pack(source, tokenizer, folder / "packed" / name, Progress(), PackConfig())
    blend = {
        "name": "first",
        "budget": {"steps": 6},
        "sequence_length": 32,
        "global_batch_size": 4,
        "sources": {n: {"data": f"packed/{n}"} for n in ("organic", "synthetic")},
        "corpora": {"organic": {}},
        "phases": [
            {
                "name": "second",
                "budget": {"steps": 4},
                "corpora": {"synthetic": {"share": 0.5}, "organic": {}},
            }
        ],
    }
    (folder / "blend.yaml").write_text(yaml.safe_dump(blend))
    return folder


@pytest.fixture
def config(cli, world):
    """config(**changes) -> name of a YAML; plans/first.json and plans/second.json are there."""
    if not (world / "plans").is_dir():
        assert cli("blend", "plan", "blend.yaml", "--out", "plans").status == 0

    def config(**changes) -> str:
        tree = {
            "model": SIZES,
            "training": {**TRAINING, "schedule": CONSTANT},
            "plans": ["plans/first.json", "plans/second.json"],
            "tokenizer": "tokenizer",
            "validation": {"held out": {"data": "packed/validation", "windows": 3}},
        }
        tree = {k: v for k, v in {**tree, **changes}.items() if v is not None}
        (world / "train.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        return "train.yaml"

    return config


def losses(out):
    return [(r["step"], r["loss"], r["grad_norm"]) for r in read_metrics(out / "metrics.jsonl")]


def test_a_run_in_phases_answers_with_its_result(cli, config, tmp_path):
    done = cli("train", config(), "--out", tmp_path, "--json")
    assert done.status == 0, done.err
    answer = json.loads(done.out)
    assert done.out.count("\n") == 1
    assert (answer["steps"], answer["tokens"]) == (10, 10 * 4 * 32)
    assert answer["checkpoint"] == str(tmp_path / "checkpoints" / "step_00000010")
    assert set(answer["validation"]) == {"held out"}
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert set(records[0]["loss_by_dataset"]) == {"organic"}
    assert set(records[-1]["loss_by_stream"]) == {"organic", "synthetic"}
    assert "left" in done.err or "took" in done.err


def test_the_same_command_goes_on_and_a_finished_run_costs_nothing(cli, config, tmp_path):
    whole = cli("train", config(), "--out", tmp_path / "whole")
    assert "10 steps, 1,280 tokens" in whole.out
    stopped = cli("train", config(), "training.stopping.max_hours=1e-9", "--out", tmp_path / "two")
    assert stopped.status == 75
    assert "hours are over" in stopped.err
    assert cli("train", config(), "--out", tmp_path / "two").status == 0
    assert losses(tmp_path / "two") == losses(tmp_path / "whole")
    before = (tmp_path / "two" / "metrics.jsonl").read_bytes()
    assert cli("train", config(), "--out", tmp_path / "two").status == 0
    assert (tmp_path / "two" / "metrics.jsonl").read_bytes() == before


def test_a_blend_may_stand_in_the_file(cli, config, world, tmp_path):
    blend = yaml.safe_load((world / "blend.yaml").read_text())
    cli("train", config(), "--out", tmp_path / "plans")
    done = cli("train", config(plans=None, blend=blend), "--out", tmp_path / "inline")
    assert done.status == 0, done.err
    assert losses(tmp_path / "inline") == losses(tmp_path / "plans")


def test_the_decay_branch_from_a_stable_checkpoint(cli, config, tmp_path):
    cli("train", config(), "--out", tmp_path / "stable")
    decay = {"kind": "wsd", "peak": 3e-3, "warmup_steps": 0, "decay_steps": 2}
    branch = {"branch_from": str(tmp_path / "stable" / "checkpoints" / "step_00000006")}
    training = {**TRAINING, "schedule": decay}
    done = cli(
        "train", config(training=training, **branch), "training.steps=8", "--out", tmp_path / "b"
    )
    assert done.status == 0, done.err
    records = read_metrics(tmp_path / "b" / "metrics.jsonl")
    assert [r["step"] for r in records] == [7, 8]
    assert [r["lr"] for r in records] == pytest.approx([2e-3, 1e-3])


def test_the_epochs_of_a_plateau_are_those_of_the_plan(cli, config, world, tmp_path):
    file = config(plans="plans/first.json")
    setting = "training.stopping.plateau.validation=held out"
    assert cli("train", file, setting, "training.eval_every=100", "--out", tmp_path).status == 0
    plan = json.loads((world / "plans" / "first.json").read_text())
    epoch = -(-plan["corpora"][0]["windows_per_epoch"] // 4)
    measured = [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl") if "validation" in r]
    assert measured == sorted({*range(epoch, 7, epoch), 6})


def test_samples_are_taken_in_the_tokenizers_own_words(cli, config, tmp_path):
    asked = config(samples={"prompts": ["word1 word2"], "every": 2, "tokens": 3})
    done = cli("train", asked, "training.steps=2", "--out", tmp_path)
    assert done.status == 0, done.err
    (sample,) = read_metrics(tmp_path / "samples.jsonl")
    assert (sample["step"], sample["prompt"]) == (2, "word1 word2")
    assert "step 2: word1 word2|" in done.err
    done = cli("train", config(samples={"prompts": ["x"]}, tokenizer=None), "--out", tmp_path)
    assert done.status == 2
    assert "samples need the tokenizer" in done.err


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(cli, config, tmp_path):
    for tokenizer in ("tokenizer", None):  # without one, packing's own record tells
        done = cli("train", config(tokenizer=tokenizer), "model.vocab_size=290", "--out", tmp_path)
        assert done.status == 2
        assert "vocabulary is smaller than the tokenizer's: vocab_size is 290" in done.err
        assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.sequence_length=64", "sequence_length is 64, the plan's is 32"),
        ("training.global_batch_size=8", "global_batch_size is 8, the plan's is 4"),
        ("training.steps=11", "the data has 40 windows, 11 steps of 4 need 44"),
        ("training.step=3", "unknown key 'step'; did you mean 'steps'?"),
        ("model.preset=quickstart", "no preset 'quickstart'"),
        ("tokenizer=other", "was packed with another tokenizer"),
        ("plans=plans/second.json", "the plans begin after step 6"),
        ("plans=plans/third.json", "no such plan"),
        ("plans=[plans/second.json, plans/first.json]", "does not follow plan"),
        ("data.organik=packed/organic", "Did you mean 'organic'?"),
        ("data.organic=packed/synthetic", "is not what was planned"),
        ("training.eval_intervals.heldout=5", "no validation set 'heldout'"),
        ("init_from=plans", "not a checkpoint"),
        ("branch_from=plans", "not a checkpoint"),
        ("validation.more=packed/none", "packed/none"),
        ("plans=[]", "set plans, blend or pairs"),
    ],
)
def test_a_mistake_is_one_clear_message(cli, config, tmp_path, override, message):
    done = cli("train", config(), override, "--out", tmp_path)
    assert done.status == 2, done.err
    assert message in done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("key", ["init_from", "branch_from"])
def test_a_checkpoint_of_another_model_is_refused(cli, config, tmp_path, key):
    cli("train", config(), "training.steps=2", "--out", tmp_path / "small")
    start = tmp_path / "small" / "checkpoints" / "step_00000002"
    wide = config(model={**SIZES, "ffn_hidden_size": 128})
    done = cli("train", wide, f"{key}={start}", "--out", tmp_path / "wide")
    assert done.status == 2
    assert "another model (ffn_hidden_size: 96 there, 128 here)" in done.err
    done = cli("train", wide, "--out", tmp_path / "small")
    assert done.status == 2
    assert "another model" in done.err


@pytest.mark.slow
def test_under_torchrun_one_rank_answers(cli, config, world, tmp_path):
    cli("train", config(), "training.steps=4", "--out", tmp_path / "one")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", *launcher, "-m", "megatron_synth.cli"),
            *("train", "train.yaml", "training.steps=4", "--out", tmp_path / "two", "--json"),
        ],
        cwd=world,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["steps"] == 4
    for ours, theirs in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def converted(cli, tmp_path, checkpoint):
    """A checkpoint as a Hugging Face folder, and that as a checkpoint again."""
    there = cli("convert", checkpoint, "--tokenizer", "tokenizer", "--out", tmp_path / "hf")
    assert there.status == 0, there.err
    back = cli("convert", tmp_path / "hf", "--out", tmp_path / "back", "--json")
    assert back.status == 0, back.err
    return tmp_path / "hf", Path(json.loads(back.out)["to"])


def test_convert_there_and_back_changes_no_weight(cli, config, tmp_path):
    out = cli("train", config(), "--out", tmp_path / "run", "training.steps=2", "--json")
    assert out.status == 0, out.err
    checkpoint = json.loads(out.out)["checkpoint"]
    folder, back = converted(cli, tmp_path, checkpoint)
    assert back.name == "step_00000000"
    again = cli("convert", back, "--tokenizer", "tokenizer", "--out", tmp_path / "again")
    assert again.status == 0, again.err
    one, other = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "again"))
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
    assert (folder / "tokenizer.json").is_file() and (folder / "config.json").is_file()
    twice = cli("convert", folder, "--out", tmp_path / "back")
    assert twice.status == 2 and "is there already" in twice.err


def test_a_run_starts_from_a_hugging_face_folder_as_from_the_checkpoint(cli, config, tmp_path):
    out = cli("train", config(), "--out", tmp_path / "run", "training.steps=2", "--json")
    folder, back = converted(cli, tmp_path, json.loads(out.out)["checkpoint"])
    runs = {}
    for name, start in (
        ("hf", folder),
        ("back", back),
        ("ours", json.loads(out.out)["checkpoint"]),
    ):
        file = config(model=None, init_from=str(start))  # the model is the start's
        done = cli("train", file, "--out", tmp_path / name, "training.steps=3")
        assert done.status == 0, done.err
        runs[name] = losses(tmp_path / name)
    assert runs["hf"] == runs["back"] == runs["ours"]
    assert runs["hf"][0][1] < losses(tmp_path / "run")[0][1]  # it has learnt something before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hf", "--out", "x", "--tokenizer", "tokenizer"], "are for the way to Hugging Face"),
        (["run/checkpoints/step_00000002", "--out", "x"], "needs the tokenizer"),
        (["nowhere", "--out", "x", "--tokenizer", "tokenizer"], "not a checkpoint"),
    ],
)
def test_a_mistake_of_convert_is_one_clear_message(cli, config, tmp_path, arguments, message):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    source = tmp_path / arguments[0]
    done = cli("convert", source, *arguments[1:])
    assert done.status == 2 and message in done.err and "Traceback" not in done.err


def test_the_optimizer_of_a_hugging_face_folder_cannot_be_kept(cli, config, tmp_path):
    out = cli("train", config(), "--out", tmp_path / "run", "training.steps=2", "--json")
    folder, _ = converted(cli, tmp_path, json.loads(out.out)["checkpoint"])
    file = config(init_from=str(folder), init_optimizer="keep")
    done = cli("train", file, "--out", tmp_path / "kept")
    assert done.status == 2 and "holds weights alone" in done.err


def test_a_run_without_a_model_says_so(cli, config, tmp_path):
    done = cli("train", config(model=None), "--out", tmp_path)
    assert done.status == 2 and "says nothing of the model" in done.err
