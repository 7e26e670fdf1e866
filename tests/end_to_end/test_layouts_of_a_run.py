"""Training steps of an experiment on two ranks, as a user asks for them; the rest is shared."""

import json
import socket
from pathlib import Path

import pytest
from toy import QUICKSTART, Cli

from megatron_synth.experiments.run_folder import RunFolder
from megatron_synth.runs import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SMALL = (
    *("corpus.max_documents=1500", "tokenizer.vocab_size=1024", "split.validation_documents=30"),
    *("split.organic_tokens=20K", "split.pool_tokens=30K", "synthesis.tokens=4K"),
    *("training.steps=6", "training.eval_every=6", "evaluation.curve_windows=4"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


def losses(folder: Path, *overrides: str) -> list[float]:
    """Train the baseline for a few steps while MASTER_PORT names a port that is in use."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = Cli(folder)(
            *("run", str(QUICKSTART), "--out", "run", "--until", "train.repeat"),
            *(*SMALL, *overrides),
            timeout=400,
            MASTER_PORT=str(taken.getsockname()[1]),
        )
    assert done.returncode == 0, done.stderr[-3000:]
    run = RunFolder(folder / "run")
    manifest = run.graph().resolve(run.store)["train.repeat"].manifest
    assert manifest is not None
    found = read_metrics(manifest.folder / "metrics.jsonl")
    return [loss for r in found for loss in (r["loss"], *r.get("validation", {}).values())]


@pytest.mark.parametrize("preset", ["quickstart-1m", "quickstart-moe"])
def test_losses_of_two_ranks_agree_with_those_of_one(folder: Path, preset: str) -> None:
    model = f"model.preset={preset}"
    one = losses(folder, model)
    assert len(one) > 6
    for layout in ("training.tensor_parallel=2", "training.pipeline_parallel=2"):
        assert losses(folder, model, layout) == pytest.approx(one, rel=5e-6), layout
    if preset == "quickstart-moe":
        # Two ranks with windows of their own; the balancing loss is taken over a micro-batch.
        single = (model, "training.micro_batch_size=1")
        spread = losses(folder, *single, "training.expert_parallel=2")
        assert spread == pytest.approx(losses(folder, *single), rel=5e-6)
    imports = list((folder / "run" / "steps").glob("corpus.import-*"))
    assert len(imports) == 1  # what does not depend on the layout was made once
    shown = json.loads(Cli(folder)("status", "run", "--json").stdout)
    assert {s["state"] for s in shown["steps"] if s["name"] == "train.repeat"} == {"done"}
