"""An experiment through a real Slurm, its training on two nodes, and what can strike it there."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from slurm_cluster import Cluster

from megatron_synth.experiments.run_folder import RunFolder
from megatron_synth.launch.submit import jobs_of
from megatron_synth.runs import Manifest
from megatron_synth.training import load_for_inference

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's text and model, one arm, small in size."""
    settings = yaml.safe_load((REPOSITORY / "examples" / "quickstart.yaml").read_text())
    for name in ("pairing", "synthesizer", "synthesis"):
        del settings[name]
    del settings["arms"]["sbp"], settings["arms"]["unique"]
    settings["corpus"]["max_documents"] = 1500
    settings["tokenizer"]["vocab_size"] = 1024
    settings["split"] |= {
        "validation_documents": 30,
        "organic_tokens": "20K",
        "pool_tokens": "100K",
    }
    settings["training"] |= {
        "steps": 320,
        "micro_batch_size": 1,
        "save_every": 16,
        "eval_every": 160,
    }
    settings["evaluation"] = {"curve_windows": 4}
    path = tmp_path_factory.mktemp("experiment") / "toy.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def profile(folder: Path, **changed: object) -> Path:
    """This machine's own software on every virtual node; training on two of them."""
    settings = {
        "name": "virtual",
        "cpus_per_node": 2,
        "environments": {"base": {"python": sys.executable}},
        "resources": {"train.*": {"nodes": 2, "ranks_per_node": 1}},
        "variables": {"MEGATRON_SYNTH_INDEX": str(folder / "index")},
        **changed,
    }
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def cli(cluster: Cluster, *arguments: str) -> str:
    """The command line, as a user runs it on a login node."""
    done = subprocess.run(
        [sys.executable, "-m", "megatron_synth.cli", *arguments],
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def job_of(cluster: Cluster, run: Path, step: str) -> int:
    return int(json.loads((run / "slurm" / "jobs.json").read_text())["jobs"][step])


def products(run: Path) -> dict[str, Manifest]:
    folder = RunFolder(run)
    found = {n: s.manifest for n, s in folder.graph().resolve(folder.store).items()}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def weights(manifest: Manifest) -> str:
    model, _ = load_for_inference(manifest.folder / str(manifest.counts["checkpoint"]))
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor is not None:
            digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def undisturbed(cluster, experiment, tmp_path_factory):
    """The whole experiment on Slurm, from `run --on` to its last job."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = folder / "run"
    cli(cluster, "run", str(experiment), "--on", str(profile(folder)), "--out", str(run))
    state = cluster.wait(job_of(cluster, run, "compare"), "COMPLETED", "CANCELLED", seconds=400)
    logs = {p.name: p.read_text()[-1500:] for p in (run / "logs").glob("*.log")}
    assert state == "COMPLETED", logs
    return run


def test_an_experiment_goes_through_to_its_report(undisturbed, cluster):
    done = products(undisturbed)
    assert len(done) == len(RunFolder(undisturbed).graph())
    assert done["train.repeat"].counts["steps"] == 320
    assert "start 1 on n[" in (undisturbed / "logs" / f"{STEP}.log").read_text()
    assert cli(cluster, "report", str(undisturbed)).strip().endswith("report.html")
    assert (undisturbed / "report.html").is_file()


def test_a_second_submission_has_nothing_to_do(undisturbed, cluster):
    jobs = (undisturbed / "slurm" / "jobs.json").read_text()
    assert "Nothing to submit" in cli(cluster, "launch", "submit", str(undisturbed))
    assert (undisturbed / "slurm" / "jobs.json").read_text() == jobs


STEP = "train.repeat"


@pytest.fixture
def begun(undisturbed, experiment, cluster, tmp_path):
    """A run that has everything but its training, which is on two nodes now, somewhere inside."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(undisturbed / "steps", run / "steps")
    for made in ("train.*", "evaluate.*", "compare*"):
        for product in (run / "steps").glob(made):
            shutil.rmtree(product)
    path = profile(tmp_path, partition="low")
    cli(
        cluster,
        *("run", str(experiment), "--on", str(path), "--out", str(run), "--until", STEP),
    )
    in_the_middle(cluster, run, time.time(), 1)
    return run


def in_the_middle(cluster: Cluster, run: Path, since: float, longest: float) -> None:
    """Wait until the training goes on again, and then a random while."""
    cluster.wait(job_of(cluster, run, STEP), "RUNNING", "COMPLETED", seconds=120)
    end = time.monotonic() + 120
    while not any(p.stat().st_mtime > since for p in metrics(run)):
        assert time.monotonic() < end, (run / "logs" / f"{STEP}.log").read_text()[-3000:]
        time.sleep(0.1)
    time.sleep(random.uniform(0, longest))


def metrics(run: Path) -> list[Path]:
    return list((run / "steps").glob(f"{STEP}-*/metrics.jsonl"))


def check(cluster: Cluster, run: Path, undisturbed: Path) -> None:
    """The training ends as the undisturbed one did."""
    cluster.wait(job_of(cluster, run, STEP), "COMPLETED", seconds=300)
    ours, theirs = products(run)[STEP], products(undisturbed)[STEP]
    assert weights(ours) == weights(theirs)
    assert ours.counts["loss"] == theirs.counts["loss"]


def requeue(cluster: Cluster, run: Path) -> None:
    cluster.run("scontrol", "requeue", str(job_of(cluster, run, STEP)))


def come_near_the_time_limit(cluster: Cluster, run: Path) -> None:
    """What Slurm itself sends."""
    job = job_of(cluster, run, STEP)
    cluster.run("scancel", "--signal=USR1", "--batch", str(job))
    left_running(cluster, job)
    assert "asked to stop" in (run / "logs" / f"{STEP}.log").read_text()
    assert not (run / "slurm" / f"{STEP}.failures").exists()  # it was no failure


def preempt(cluster: Cluster, run: Path) -> None:
    """A job that may take every node."""
    script = run.parent / "urgent.sh"
    script.write_text("#!/bin/bash\nsleep 2\n")
    cluster.run(
        *("sbatch", "--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null"),
        str(script),
    )
    left_running(cluster, job_of(cluster, run, STEP))


def lose_a_node(cluster: Cluster, run: Path) -> None:
    job = job_of(cluster, run, STEP)
    nodes = cluster.run("squeue", "-h", "-j", str(job), "-o", "%N").strip()
    lost = random.choice(cluster.run("scontrol", "show", "hostnames", nodes).split())
    cluster.kill_node(lost)
    left_running(cluster, job)
    cluster.start_node(lost)


def cancel_and_submit(cluster: Cluster, run: Path) -> None:
    job = job_of(cluster, run, STEP)
    cluster.run("scancel", str(job))
    cluster.wait(job, "CANCELLED")
    assert jobs_state(run, cluster) == "CANCELLED"
    cli(cluster, "launch", "submit", str(run), "--until", STEP)
    assert job_of(cluster, run, STEP) != job


def left_running(cluster: Cluster, job: int) -> None:
    """Wait until the job's start is over."""
    states = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "COMPLETING", "COMPLETED", "NODE_FAIL")
    cluster.wait(job, *states, seconds=120)


FAULTS = [requeue, come_near_the_time_limit, preempt, lose_a_node, cancel_and_submit]


def test_the_weights_are_the_same_after_every_fault_one_upon_the_other(begun, undisturbed, cluster):
    random.shuffle(FAULTS)
    for fault in FAULTS:
        struck = time.time()
        fault(cluster, begun)
        if STEP not in products(begun):
            in_the_middle(cluster, begun, struck, 1)
    check(cluster, begun, undisturbed)


@pytest.mark.full
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("_time", range(4))
def test_the_weights_are_the_same_after_a_fault(_time, fault, begun, undisturbed, cluster):
    fault(cluster, begun)
    check(cluster, begun, undisturbed)


def jobs_state(run: Path, cluster: Cluster) -> str:
    before = dict(os.environ)
    os.environ.update(cluster.environment)
    try:
        return jobs_of(RunFolder(run))["train.repeat"].state
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_a_users_mistake_is_not_tried_again(experiment, cluster, tmp_path):
    run = tmp_path / "run"
    path = profile(tmp_path)
    text = tmp_path / "words.jsonl"
    text.write_text('{"id": "a", "text": "far too little to be held out from"}\n')
    cli(
        cluster,
        *("run", str(experiment), "--on", str(path), "--out", str(run), f"corpus.input={text}"),
    )
    first, last = (job_of(cluster, run, step) for step in ("corpus.import", "compare"))
    assert cluster.wait(first, "FAILED", "COMPLETED") in ("FAILED", "COMPLETED")
    assert cluster.wait(last, "CANCELLED", "COMPLETED") == "CANCELLED"
    said = "".join(p.read_text() for p in (run / "logs").glob("*.log"))
    assert "not tried again" in said
    assert "start 2" not in said
    shown = json.loads(cli(cluster, "status", str(run), "--json"))
    assert "failed" in {step["state"] for step in shown["steps"]}
    assert shown["jobs"]["compare"]["state"] == "CANCELLED"
