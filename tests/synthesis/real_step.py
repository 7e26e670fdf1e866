"""The whole step as its own process: Ray, Curator, vLLM. Started, and killed, by the tests."""

import json
import sys
from pathlib import Path

from megatron_synth.config import MegatronSynthError
from megatron_synth.runs import Progress
from megatron_synth.synthesis import SynthesisConfig, synthesize


def main(folder: Path, settings: str) -> None:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    try:
        counts = synthesize(
            SynthesisConfig.model_validate_json(settings),
            folder / "documents.jsonl.zst",
            folder / "tokenizer",
            folder / "model",
            out,
            Progress(out / ".progress.json"),
        )
    except MegatronSynthError as error:
        (folder / "error.txt").write_text(f"{type(error).__name__}: {error}")
        sys.exit(error.exit_status)
    (folder / "counts.json").write_text(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
