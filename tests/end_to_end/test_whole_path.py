"""The toy experiment, whole: what it makes, that it is made once, and that a kill costs nothing."""

import json
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from toy import TOY, Cli

from megatron_synth.blending import Plan
from megatron_synth.corpus import read_documents
from megatron_synth.experiments.run_folder import RunFolder
from megatron_synth.runs import Manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

KILLS = 20 if os.environ.get("MEGATRON_SYNTH_TESTS") == "full" else 3


def manifests(run: Path) -> dict[str, Manifest]:
    folder = RunFolder(run)
    found = {name: s.manifest for name, s in folder.graph().resolve(folder.store).items()}
    assert all(found.values())
    return {name: m for name, m in found.items() if m}


def test_a_second_run_does_nothing_and_says_so(finished_run: Path) -> None:
    cli = Cli(finished_run.parent)
    before = {p: p.stat().st_mtime_ns for p in finished_run.rglob("*")}
    again = cli(*cli.toy(finished_run))
    assert again.returncode == 0
    assert "Nothing to do" in again.stdout
    changed = {p.name for p, t in before.items() if p.exists() and p.stat().st_mtime_ns != t}
    assert changed <= {"run", "experiment.yaml", "source.json", "report.html", ".lock"}


def test_every_arm_trains_on_the_same_number_of_tokens_as_planned(finished_run: Path) -> None:
    made = manifests(finished_run)
    tokens = set()
    for arm in ("repeat", "sbp", "unique"):
        plan = Plan.load(made[f"plan.{arm}"].folder / "plan.json")
        ledger = made[f"train.{arm}"].counts["ledger"]
        assert made[f"train.{arm}"].counts["plan"] == plan.hash == ledger["plan"]
        counted = made[f"audit.{arm}"].counts["corpora"]  # from the windows that were served
        for corpus in plan.corpora:
            assert ledger["corpora"][corpus.name]["windows"] == corpus.windows
            assert counted[corpus.name]["windows"] == corpus.windows
        tokens.add(ledger["tokens"])
    assert tokens == {96 * 2 * 512}


def test_synthetic_text_is_seen_once_and_can_be_traced_to_its_seed(finished_run: Path) -> None:
    made = manifests(finished_run)
    plan = Plan.load(made["plan.sbp"].folder / "plan.json")
    assert plan.corpus("synthetic").epochs == 1.0
    organic = {d.id for d in read_documents(made["corpus.split"].folder / "organic.jsonl.zst")}
    synthetic = list(read_documents(made["synthesize"].folder / "documents.jsonl.zst"))
    assert synthetic
    for document in synthetic:
        assert document.source_id in organic
        assert document.method == "sbp"
        assert document.generator
        assert document.seed is not None
    assert len({d.id for d in synthetic}) == len(synthetic)


def test_no_held_out_package_is_trained_on(finished_run: Path) -> None:
    split = manifests(finished_run)["corpus.split"].folder
    packages = {
        name: {d.metadata["package"] for d in read_documents(split / f"{name}.jsonl.zst")}
        for name in ("validation", "organic", "pool")
    }
    assert packages["validation"]
    assert not packages["validation"] & (packages["organic"] | packages["pool"])


def test_the_report_says_what_came_out(finished_run: Path) -> None:
    page = (finished_run / "report.html").read_text(encoding="utf-8")
    comparison = json.loads(
        (manifests(finished_run)["compare"].folder / "comparison.json").read_text()
    )
    for arm in comparison["arms"]:
        assert f"{arm['loss']:.4f}" in page
    split = manifests(finished_run)["corpus.split"].counts
    assert f"{split['drawn_too_long']:,}" in page  # drops of every step, the corpus's too
    # Documents may name addresses; the page itself must not load any, nor run anything.
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|url\(|@import|<script""", page)


def test_status_says_that_everything_is_done(finished_run: Path) -> None:
    cli = Cli(finished_run.parent)
    shown = json.loads(cli("status", str(finished_run), "--json").stdout)
    assert {step["state"] for step in shown["steps"]} == {"done"}


def test_a_changed_setting_reruns_only_what_depends_on_it(finished_run: Path) -> None:
    from megatron_synth.config import load_config
    from megatron_synth.experiments.config import ExperimentConfig
    from megatron_synth.experiments.graph import Graph, State
    from megatron_synth.experiments.kinds import VERSIONS
    from megatron_synth.experiments.steps import steps_of

    run = RunFolder(finished_run)
    source = json.loads((finished_run / "source.json").read_text())["corpus"]
    config = load_config(
        finished_run / "experiment.yaml", ExperimentConfig, ["synthesis.temperature=0.9"]
    )
    statuses = Graph(steps_of(config, source), VERSIONS).resolve(run.store)
    undone = {name for name, s in statuses.items() if s.state is not State.DONE}
    assert undone == {
        "synthesize",
        "pack.synthetic",
        "plan.sbp",
        "train.sbp",
        "audit.sbp",
        "evaluate.sbp",
        "compare",
    }


def test_kills_at_random_times_change_nothing_but_the_clock(
    finished_run: Path, tmp_path: Path
) -> None:
    """`kill -9` of the launcher or of a step's process, then the same command again."""
    cli, out, dice = Cli(tmp_path), tmp_path / "run", random.Random(20261121)
    undisturbed = manifests(finished_run)
    total = sum(m.seconds for m in undisturbed.values())
    longest = min(total / 3, max(30.0, 3 * total / KILLS))  # the kills spread over the whole run
    for _ in range(KILLS):
        process = subprocess.Popen(
            cli.command(*cli.toy(out)),
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(dice.uniform(2, longest))
        family = psutil.Process(process.pid).children(recursive=True)
        workers = [p for p in family if any("experiments.worker" in a for a in _arguments(p))]
        victim = dice.choice([psutil.Process(process.pid), *workers])
        victim.kill()
        process.wait(timeout=60)
        alive = _still_running(family, 60)
        assert not alive, f"outlived the run: {[(p.pid, _arguments(p)[:4]) for p in alive]}"
    done = cli(*cli.toy(out), timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]

    again = manifests(out)
    for step in ("corpus.import", "tokenizer", "corpus.split", "pack.organic", "plan.unique"):
        assert again[step].content_hash == undisturbed[step].content_hash, step
    for arm in ("repeat", "unique"):  # the same losses, bit for bit: the same final weights
        step = f"evaluate.{arm}"
        assert again[step].content_hash == undisturbed[step].content_hash, step
        assert again[step].counts["loss"] == undisturbed[step].counts["loss"]
    synthetic = list(read_documents(again["synthesize"].folder / "documents.jsonl.zst"))
    assert max(Counter(d.id for d in synthetic).values()) == 1
    assert not list((out / "steps").glob("*.partial"))


def test_ctrl_c_says_how_to_go_on_and_leaves_a_report(tmp_path: Path) -> None:
    cli, out = Cli(tmp_path), tmp_path / "run"
    # A suite that a script started in the background ignores Ctrl-C, and its children would too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        cli.command(*cli.toy(out)), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 60
    while not (out / "logs" / "corpus.import.log").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again to go on" in said
    assert "Traceback" not in said
    assert (out / "report.html").is_file()
    assert not _still_running(family, 30)


def _still_running(processes: list[psutil.Process], patience: float) -> list[psutil.Process]:
    """Those that run after `patience` seconds; a zombie has ended, whoever is to bury it."""
    end = time.monotonic() + patience
    while running := [p for p in processes if _runs(p)]:
        if time.monotonic() > end:
            break
        time.sleep(0.1)
    return running


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def test_the_toy_is_the_quickstart_made_small(finished_run: Path) -> None:
    config = RunFolder(finished_run).config()
    assert list(config.arms) == ["repeat", "sbp", "unique"]
    assert config.synthesis is not None
    assert config.synthesis.ray.executor == "ray_data"  # the real pipeline, not the inline one
    assert all("executor" not in override for override in TOY)
