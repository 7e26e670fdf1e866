"""`synthesize` as an array of a real Slurm; a task that fails is submitted again, alone."""

import re
import shlex
import sys
import time
from pathlib import Path

import pytest
from slurm_cluster import Cluster

from megatron_synth.corpus import read_documents

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

from writing_endpoint import serve, write_inputs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def states(cluster: Cluster, array: int) -> dict[int, str]:
    """State of each task of an array."""
    said = cluster.run("squeue", "-h", "-a", "-r", "-t", "all", "-j", str(array), "-o", "%K %T")
    return {int(line.split()[0]): line.split()[1] for line in said.splitlines()}


def submit(cluster: Cluster, script: Path, tasks: str) -> dict[int, str]:
    """Submit an array and wait for its end."""
    array = int(cluster.run("sbatch", "--parsable", f"--array={tasks}", str(script)))
    end = time.monotonic() + 240
    while set((now := states(cluster, array)).values()) - {"COMPLETED", "FAILED"}:
        assert time.monotonic() < end, now
        time.sleep(0.5)
    return now


def test_a_failed_task_is_submitted_again_alone_and_the_corpus_is_what_one_process_makes(
    cluster: Cluster, tmp_path: Path
):
    write_inputs(tmp_path)
    with serve() as server:
        command = [
            *(sys.executable, "-m", "megatron_synth.cli", "synthesize", "faq"),
            *("--documents", str(tmp_path / "documents.jsonl.zst")),
            *("--model", str(tmp_path / "model"), "--generations", "2", "shards=9"),
            *("ray.executor=inline", "filters.min_tokens=5", "engine.kind=endpoint"),
            *(f"engine.url={server.url}", "engine.model=writer", "engine.backoff_seconds=0"),
        ]
        script = tmp_path / "array.sh"
        planted = tmp_path / "planted"
        planted.touch()
        array_command = [*command, "--out", str(tmp_path / "array"), "ray.slurm_array=4"]
        script.write_text(
            "#!/bin/bash\n"
            f"#SBATCH --output={tmp_path}/%a.log --open-mode=append\n"
            f"if [ -e {planted} ] && [ $SLURM_ARRAY_TASK_ID = 2 ]; then\n"
            "    wrong=engine.url=http://127.0.0.1:9/v1\n"
            "fi\n"
            f"{shlex.join(array_command)} $wrong\n"
        )
        first = submit(cluster, script, "0-3")
        logs = {task: (tmp_path / f"{task}.log").read_text() for task in range(4)}
        assert first == {0: "COMPLETED", 1: "COMPLETED", 2: "FAILED", 3: "COMPLETED"}, logs
        said = [re.search(r"outstanding: ([\d,-]+)\.", logs[task]) for task in (0, 1, 3)]
        assert all(said), logs
        assert "2" in {found[1] for found in said if found}  # the last one to end knows
        assert not (tmp_path / "array" / "manifest.json").exists()

        planted.unlink()
        assert submit(cluster, script, "2") == {2: "COMPLETED"}
        assert "24 documents" in (tmp_path / "2.log").read_text()
        assert (tmp_path / "array" / "manifest.json").is_file()
        seeds = [body["seed"] for body in server.asked]
        assert len(seeds) == len(set(seeds)) == 24

        cluster.run(*command, "--out", str(tmp_path / "whole"))
    array, whole = (
        [
            (d.id, d.source_id, d.generation, d.text)
            for d in read_documents(tmp_path / name / "documents.jsonl.zst")
        ]
        for name in ("array", "whole")
    )
    assert array == whole
