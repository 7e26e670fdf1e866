"""A toy experiment: every real part of the quickstart, small in size."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
QUICKSTART = REPOSITORY / "examples" / "quickstart.yaml"

TOY = (
    "corpus.max_documents=4000",
    "tokenizer.vocab_size=1024",
    "split.validation_documents=60",
    "split.organic_tokens=60K",
    "split.pool_tokens=110K",
    "training.steps=96",
    "training.eval_every=48",
    "training.save_every=20",
    "evaluation.curve_windows=8",
    "pairing.target_pairs=400",
    "synthesizer.steps=24",
    "synthesizer.save_every=8",
    "synthesis.tokens=20K",
    "synthesis.max_output_tokens=200",
    # After 96 steps the model has hardly seen an end of text.
    "synthesis.filters.finished=false",
)


@dataclass(frozen=True)
class Cli:
    """Runs the command line as a user does."""

    folder: Path

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "megatron_synth.cli", *arguments]

    def __call__(
        self, *arguments: str, timeout: float = 120, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def toy(self, out: Path, *overrides: str) -> Sequence[str]:
        """Arguments of a toy run."""
        return ["run", str(QUICKSTART), "--out", str(out), *TOY, *overrides]
