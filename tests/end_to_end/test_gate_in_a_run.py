"""The mideval gate inside an experiment, generator and judge on vLLM: it stops the run, or lets it
go on.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
from toy import Cli

from megatron_synth.experiments.run_folder import RunFolder

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_a_gate_stops_a_run_until_its_judge_is_content(finished_run: Path, tmp_path: Path) -> None:
    from tiny_llama import save_parrot

    run = tmp_path / "run"
    shutil.copytree(finished_run, run, symlinks=True)
    for word in ("relevant", "irrelevant"):
        save_parrot(tmp_path / word, word, context=16_384)
    cli = Cli(tmp_path)

    def go_on(judge: str) -> tuple[int, str]:
        done = cli(
            *cli.toy(
                run,
                "synthesis.seed=1",  # new documents, by the generator that is there
                "synthesis.mideval.samples=30",
                f"synthesis.mideval.judge={tmp_path / judge}",
                "synthesis.mideval.max_irrelevant=0.5",
                "synthesis.mideval.min_judged_share=0.4",
            ),
            "--until",
            "synthesize",
            timeout=400,
        )
        return done.returncode, done.stderr

    status, said = go_on("irrelevant")
    assert status == 1
    assert "irrelevant 100.0% (max_irrelevant 50.0%)" in said
    assert RunFolder(run).graph().resolve(RunFolder(run).store)["synthesize"].manifest is None

    status, said = go_on("relevant")
    assert status == 0, said[-3000:]
    made = RunFolder(run).graph().resolve(RunFolder(run).store)["synthesize"].manifest
    assert made is not None
    report = json.loads((made.folder / "mideval.json").read_text())
    assert report["judge"].startswith("relevant@")
    assert report["documents"] == 30
    assert report["figures"]["irrelevant"] == 0
    assert report["stopped_by"] is None
    assert made.counts["asked_again"] == 0
