"""What a user sees who got something wrong: one message, the exit status, nothing half-made."""

import gzip
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from toy import QUICKSTART, Cli

VERBS = [
    ["run"],
    ["plan"],
    ["status"],
    ["logs"],
    ["report"],
    ["corpus", "import"],
    ["corpus", "stats"],
    ["corpus", "check"],
    ["models", "list"],
    ["models", "params"],
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_the_help_of_every_verb_shows_an_example(cli: Cli, verb: list[str]) -> None:
    shown = cli(*verb, "--help")
    assert shown.returncode == 0
    assert f"Example: megatron-synth {' '.join(verb)}" in re.sub(r"\s+", " ", shown.stdout)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        (["run", str(QUICKSTART), "trainin.steps=1"], ["'trainin'", "did you mean 'training'"]),
        (["run", str(QUICKSTART), "training.step=1"], ["'training.step'", "'steps'"]),
        (["run", str(QUICKSTART), "training.steps=many"], ["'training.steps'", "'many'"]),
        (["run", str(QUICKSTART), "corpus.input=nowhere.jsonl"], ["nowhere.jsonl"]),
        (["run", str(QUICKSTART), "model.preset=quickstart-2m"], ["quickstart-1m"]),
        (
            ["run", str(QUICKSTART), "arms.sbp.corpora.synthetic.epochs=9"],
            ["arms.sbp", "budget"],
        ),
        (
            ["run", str(QUICKSTART), "split.pool_tokens=300K"],
            ["arms.unique", "pool", "max_epochs"],
        ),
        (["run", str(QUICKSTART), "split.max_document_tokens=512"], ["below", "512"]),
        (["run", str(QUICKSTART), "arms.sbp.corpora.synthetik.epochs=1"], ["synthetik"]),
        (
            ["run", str(QUICKSTART), "training.tensor_parallel=3"],
            ["training: num_attention_heads", "tensor_parallel=3"],
        ),
        (
            ["run", str(QUICKSTART), "synthesizer.pipeline_parallel=3"],
            ["synthesizer: num_layers", "pipeline_parallel=3"],
        ),
        (["run", str(QUICKSTART), "training.expert_parallel=2"], ["no experts", "MoE preset"]),
        (
            [
                *("run", str(QUICKSTART), "model.preset=quickstart-moe"),
                "training.expert_parallel=2",  # so two ranks, and 2 windows are one micro-batch
            ],
            ["training: global_batch_size=2 is not a multiple", "data parallelism = 2 x 2"],
        ),
        (["status", "nowhere"], ["nowhere", "not a run folder"]),
        (["models", "params", "sbp-4b"], ["sbp-4b", "sbp-3b"]),
    ],
    ids=lambda v: " ".join(v)[-40:] if isinstance(v, list) else None,
)
def test_a_mistake_is_one_message_and_exit_status_2(
    cli: Cli, arguments: list[str], words: list[str]
) -> None:
    done = cli(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert done.stdout == ""
    assert not (cli.folder / "runs").exists()


def write_corpus(path: Path, texts: list[str]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as handle:
        for text in texts:
            handle.write(json.dumps({"text": text}) + "\n")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], ["corpus.import", "rows"]),
        (["word " * 60] * 50, ["corpus.split", "tokens"]),
        (["", "short"] * 20, ["corpus.import"]),
    ],
    ids=["empty", "too small for the plan", "only short texts"],
)
def test_a_corpus_that_cannot_serve_is_refused_by_the_step_that_sees_it(
    cli: Cli, texts: list[str], words: list[str]
) -> None:
    unique = [f"{text} {number}" if text else text for number, text in enumerate(texts)]
    path = write_corpus(cli.folder / "corpus.jsonl.gz", unique)
    out = cli.folder / "run"
    done = cli("run", str(QUICKSTART), "--out", str(out), f"corpus.input={path}")
    assert done.returncode == 2, done.stderr
    message = done.stderr[done.stderr.index("megatron-synth:") :]
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in message
    assert "Log:" in message
    shown = json.loads(cli("status", str(out), "--json").stdout)
    assert "failed" in {step["state"] for step in shown["steps"]}
    for folder in (out / "steps").iterdir():  # whatever has a final name is whole
        assert (
            folder.name.startswith(".")
            or folder.suffix == ".partial"
            or (folder / "manifest.json").is_file()
        )


def test_plan_prints_the_table_and_json_without_any_data(cli: Cli) -> None:
    table = cli("plan", str(QUICKSTART), "corpus.input=nowhere.jsonl")
    assert table.returncode == 0
    assert "Weights count tokens after packing" in table.stdout
    answer = json.loads(cli("plan", str(QUICKSTART), "--json").stdout)
    plans = answer["arms"].values()
    assert len({plan["steps"] * plan["global_batch_size"] for plan in plans}) == 1  # equal compute
    assert answer["cost"]["total"]["gpu_hours"] > 0


@pytest.mark.slow
def test_a_full_disk_is_one_message_and_the_next_run_goes_on(cli: Cli) -> None:
    small = cli.folder / "small"
    small.mkdir()
    mount = ["unshare", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here, so no small disk can be made")
    probe = f"mount -t tmpfs -o size=1m none {small}"
    if subprocess.run([*mount, probe], check=False, capture_output=True).returncode != 0:
        pytest.skip("no permission to mount a small disk")
    run = shlex.join(
        cli.command(
            *("run", str(QUICKSTART), "--out", f"{small}/run", "--until", "corpus.split"),
            *("corpus.max_documents=3000", "split.organic_tokens=20K", "split.pool_tokens=30K"),
            *("training.steps=20", "synthesis.tokens=5K", "split.validation_documents=20"),
        )
    )
    script = (
        f"mount -t tmpfs -o size=300k none {small} && {run}; echo first $?; "
        f"mount -o remount,size=50m {small} && {run}; echo second $?"
    )
    done = subprocess.run(
        [*mount, script], capture_output=True, text=True, check=False, timeout=300
    )
    assert "first 1" in done.stdout, done.stderr
    assert "second 0" in done.stdout, done.stderr
    message = done.stderr[done.stderr.index("megatron-synth:") :]
    assert "no space left on device" in message
    assert "Traceback" not in done.stderr


def test_an_output_folder_that_is_a_file_is_one_message(cli: Cli) -> None:
    file = cli.folder / "file"
    file.write_text("")
    for out in (file, file / "below"):
        done = cli("run", str(QUICKSTART), "--out", str(out))
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "cannot write" in done.stderr
