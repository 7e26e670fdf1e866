"""`blend plan` as a user meets it: tables, JSON, files, and one message for a mistake."""

import json
import logging
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_synth.blending import Plan
from megatron_synth.cli import app, main

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = REPOSITORY / "examples" / "blends"
QUICKSTART = REPOSITORY / "examples" / "quickstart.yaml"

BLEND = {
    "budget": 6400,
    "sequence_length": 16,
    "global_batch_size": 4,
    "sources": {
        "organic": {"declared": {"tokens": 1000, "documents": 20}},
        "synthetic": {"declared": {"tokens": 2000, "documents": 50}},
    },
    "corpora": {"synthetic": {"epochs": 1, "max_epochs": 1}, "organic": {}},
}


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """cli(arguments...) -> Done: the command line in this process, in an empty folder."""
    logger = logging.getLogger("megatron_synth")
    before = (list(logger.handlers), logger.level, logger.propagate)
    monkeypatch.chdir(tmp_path)

    def cli(*arguments: str) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main(lambda: app(list(arguments)))
        shown = capsys.readouterr()
        status = leaving.value.code
        return Done(0 if status is None else status, shown.out, shown.err)

    yield cli
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture
def blend(tmp_path):
    def blend(**changes) -> str:
        (tmp_path / "blend.yaml").write_text(yaml.safe_dump({**BLEND, **changes}, sort_keys=False))
        return "blend.yaml"

    return blend


def test_a_plan_prints_its_table(cli, blend):
    done = cli("blend", "plan", blend())
    assert (done.status, done.err) == (0, "")
    header = next(line for line in done.out.splitlines() if line.startswith("corpus "))
    assert header.split() == [
        *("corpus", "stream", "asked", "documents", "tokens", "windows/epoch", "dropped/epoch"),
        *("windows", "trained", "tokens", "share", "epochs", "cap"),
    ]
    assert "Weights count tokens after packing" in done.out
    row = next(line for line in done.out.splitlines() if line.startswith("synthetic"))
    assert re.search(r"epochs 1 +50 \(declared\) +2,000 +124 +15 +124 +1,984 +31.00 % +1 +1$", row)


def test_json_gives_tokens_share_and_epochs_by_corpus_and_nothing_else(cli, blend):
    done = cli("blend", "plan", blend(), "--json")
    answer = json.loads(done.out)
    assert done.out.count("\n") == 1
    assert set(answer) == {
        *("plan", "steps", "first_step", "samples", "tokens"),
        *("sequence_length", "global_batch_size", "corpora", "streams"),
    }
    assert answer["steps"] == 100 and answer["tokens"] == 6400
    synthetic = answer["corpora"]["synthetic"]
    assert synthetic == {
        "stream": "synthetic",
        "asked": "epochs 1",
        "tokens": 1984,
        "share": 0.31,
        "epochs": 1.0,
        "windows": 124,
        "cap": 1.0,
        "dropped_tokens": 15,
        "epochs_before": 0.0,
        "corpus_tokens": 2000,
        "documents": 50,
        "windows_per_epoch": 124,
        "declared": True,
    }
    assert answer["corpora"]["organic"]["cap"] is None
    assert sum(c["windows"] for c in answer["corpora"].values()) == answer["samples"]
    assert answer["streams"]["organic"] == {"tokens": 4416, "share": 0.69, "windows": 276}


def test_several_plans_are_one_object_by_name(cli, blend):
    phases = [{"name": "more", "budget": 640, "corpora": {"organic": {}}}]
    path = blend(phases=phases, variants={"a": {}, "b": {"seed": 1}})
    plans = json.loads(cli("blend", "plan", path, "--json").out)["plans"]
    assert list(plans) == ["a", "a.more", "b", "b.more"]
    assert plans["a.more"]["first_step"] == plans["a"]["steps"]
    shown = cli("blend", "plan", path).out
    assert [line for line in shown.splitlines() if line in plans] == list(plans)
    alone = json.loads(cli("blend", "plan", blend(variants={"a": {}}), "--json").out)
    assert alone["plan"] == plans["a"]["plan"]


def test_settings_of_the_command_line_come_last(cli, blend):
    path = blend(variants={"a": {"seed": 3}})
    answer = json.loads(cli("blend", "plan", path, "seed=9", "budget=12.8K", "--json").out)
    assert answer["tokens"] == 12800
    same = json.loads(cli("blend", "plan", blend(seed=9, budget=12800), "--json").out)
    assert answer["plan"] == same["plan"]


def test_solved_plans_are_written_and_read_again(cli, blend, tmp_path):
    path = blend(variants={"a": {}, "b": {"seed": 1}})
    first = cli("blend", "plan", path, "--out", "plans/of_today", "--json")
    folder = tmp_path / "plans" / "of_today"
    assert sorted(p.name for p in folder.iterdir()) == ["a.json", "b.json"]
    again = json.loads(cli("blend", "plan", str(folder / "b.json"), "--json").out)
    assert again == json.loads(first.out)["plans"]["b"]
    assert Plan.load(folder / "b.json").seed == 1


def test_a_plan_goes_on_after_another(cli, blend):
    assert cli("blend", "plan", blend(), "--out", "plans").status == 0
    path = blend(corpora={"organic": {}}, budget={"steps": 3})
    whole = json.loads(cli("blend", "plan", path, "--after", "plans/plan.json", "--json").out)
    cut = json.loads(
        cli("blend", "plan", path, "--after", "plans/plan.json", "--at", "50", "--json").out
    )
    assert (whole["first_step"], cut["first_step"]) == (100, 50)
    assert cut["corpora"]["organic"]["epochs_before"] < whole["corpora"]["organic"]["epochs_before"]
    table = cli("blend", "plan", path, "--after", "plans/plan.json").out
    assert "goes on after step 100" in table and "not in this phase" in table


def test_audit_and_export_take_the_yaml_too_and_the_audit_then_knows_the_phases_before(
    cli, blend, tmp_path
):
    builder = IndexedDatasetBuilder(str(tmp_path / "packed.bin"), dtype=np.int32)
    for _ in range(50):
        builder.add_document(torch.arange(20), [20])
    builder.finalize(str(tmp_path / "packed.idx"))
    path = blend(
        sources={"organic": {"data": "packed"}},
        corpora={"organic": {}},
        budget={"steps": 7},
        phases=[{"name": "more", "budget": {"steps": 9}, "corpora": {"organic": {}}}],
    )
    done = cli("blend", "audit", path)
    assert done.status == 2 and "holds 2 plans: plan, more" in done.err
    assert "has no plan 'mor', but plan, more" in cli("blend", "audit", path, "--name", "mor").err
    found = json.loads(cli("blend", "audit", path, "--name", "more", "--at", "3", "--json").out)
    assert (found["passed"], found["corpora"]["organic"]["windows"]) == (True, 12)
    shown = cli("blend", "audit", path, "--name", "more").err
    assert "phase 2 of 2" in shown
    done = cli("blend", "export", path, "--name", "plan", "--to", "megatron", "--out", "args.txt")
    assert done.status == 0 and (tmp_path / "args.txt").read_text().strip().endswith("packed")


def test_an_experiment_shows_the_plan_of_each_arm(cli):
    plans = json.loads(cli("blend", "plan", str(QUICKSTART), "--json").out)["plans"]
    assert set(plans) == {"repeat", "sbp", "unique"}
    assert len({plan["tokens"] for plan in plans.values()}) == 1
    fewer = cli("blend", "plan", str(QUICKSTART), "training.steps=800", "--json")
    assert json.loads(fewer.out)["plans"]["sbp"]["steps"] == 800


@pytest.mark.parametrize("verb", ["plan", "audit", "export"])
def test_the_help_of_every_verb_of_blend_shows_an_example(cli, verb):
    done = cli("blend", verb, "--help")
    assert done.status == 0
    assert f"Example: megatron-synth blend {verb} " in re.sub(r"\s+", " ", done.out)


def test_the_example_of_the_help_works(cli):
    shown = re.sub(r"\s+", " ", cli("blend", "plan", "--help").out)
    example = re.search(r"Example: megatron-synth (blend plan \S+\.yaml --variant \w+)", shown)
    assert example is not None
    arguments = example[1].split()
    done = cli(*arguments[:2], str(REPOSITORY / arguments[2]), *arguments[3:])
    assert done.status == 0 and "12.50 %" in done.out


@pytest.mark.parametrize(
    ("changes", "arguments", "words"),
    [
        ({}, ["nowhere.yaml"], ["nowhere.yaml", "no such file", "blend.yaml"]),
        ({}, ["nowhere.json"], ["nowhere.json", "no such plan"]),
        ({}, ["."], ["is a folder"]),
        ({}, ["blend.yaml", "sead=1"], ["'sead'", "did you mean 'seed'"]),
        ({}, ["blend.yaml", "seed"], ["'seed' is not an override"]),
        ({}, ["blend.yaml", "budget=many"], ["budget", "'many'"]),
        ({}, ["blend.yaml", "budget=10"], ["10 tokens", "one global batch takes 64"]),
        ({}, ["blend.yaml", "budget=1K"], ["60 windows", "124", "organic"]),
        ({}, ["blend.yaml", "corpora.synthetic.epochs=2"], ["epochs 2 is over max_epochs 1"]),
        ({}, ["blend.yaml", "corpora.synthetik.epochs=1"], ["'synthetik'", "'synthetic'"]),
        ({}, ["blend.yaml", "corpora.synthetic.epochs=inf"], ["corpora.synthetic.epochs", "inf"]),
        ({}, ["blend.yaml", "corpora.organic.max_epochs=.nan"], ["organic.max_epochs", "nan"]),
        ({"corpora": {"organic": {"max_epochs": 6}}}, ["blend.yaml"], ["max_epochs", "organic"]),
        ({"variants": {"half": {}}}, ["blend.yaml", "--variant", "halb"], ["'halb'", "'half'"]),
        ({}, ["blend.yaml", "--variant", "half"], ["'half'", "base"]),
        ({}, ["blend.yaml", "--after", "nowhere.json"], ["nowhere.json", "no such plan"]),
        ({}, ["blend.yaml", "--at", "3"], ["--at", "--after"]),
        ({"sources": {"organic": {}}}, ["blend.yaml"], ["sources.organic", "declared"]),
        ({"source": 3}, ["blend.yaml"], ["'source'", "'sources'"]),
    ],
)
def test_a_mistake_in_a_plan_is_one_message(cli, blend, changes, arguments, words):
    blend(**changes)
    done = cli("blend", "plan", *arguments, "--json")
    assert done.status == 2
    assert done.out == "" and "Traceback" not in done.err
    assert done.err.startswith("megatron-synth: ") and done.err.count("megatron-synth: ") == 1
    for word in words:
        assert word in done.err


@pytest.mark.parametrize("given", ["seed=1", "--variant=a", "--after=p.json", "--at=3"])
def test_a_solved_plan_takes_no_settings(cli, blend, given):
    assert cli("blend", "plan", blend(), "--out", ".").status == 0
    done = cli("blend", "plan", "plan.json", given)
    assert done.status == 2
    assert "is a solved plan" in done.err and given.partition("=")[0] in done.err


def test_an_experiment_takes_no_phase(cli):
    done = cli("blend", "plan", str(QUICKSTART), "--variant", "sbp")
    assert done.status == 2 and "is an experiment; --variant cannot be set" in done.err


@pytest.mark.parametrize("text", ["{", "[]", '{"hash": "x"}', ""])
def test_a_damaged_plan_is_refused(cli, tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    done = cli("blend", "plan", "plan.json")
    assert done.status == 2 and "not a blend plan" in done.err


def test_plans_that_cannot_be_written_are_a_failure_of_the_run(cli, blend, tmp_path):
    (tmp_path / "taken").write_text("a file")
    done = cli("blend", "plan", blend(), "--out", "taken")
    assert done.status == 1
    assert "taken: cannot write" in done.err and "Traceback" not in done.err


def test_data_that_differs_from_what_was_declared_is_refused(cli, blend, tmp_path):
    (tmp_path / "half_text_document.bin").write_bytes(b"\0" * 40)
    sources = {**BLEND["sources"], "organic": {"data": "half"}}
    done = cli("blend", "plan", blend(sources=sources))
    assert done.status == 2 and "half of an indexed dataset" in done.err


def test_the_installed_command_does_the_same():
    command = [sys.executable, "-m", "megatron_synth.cli", "blend", "plan"]
    good = subprocess.run(
        [*command, str(RECIPES / "sbp_1t.yaml"), "--variant", "s125b", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(good.stdout)["corpora"]["synthetic"]["epochs"] == 1
    bad = subprocess.run(
        [*command, str(RECIPES / "sbp_1t.yaml"), "--variant", "s12b"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert bad.returncode == 2 and "Traceback" not in bad.stderr
    assert "Did you mean 's125b'?" in bad.stderr
