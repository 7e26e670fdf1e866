"""A step with the scripted engine as its own process; prints its counts, or its error."""

import json
import sys
import time
from functools import partial
from pathlib import Path

from scripted import ScriptedEngine

from megatron_synth.config import MegatronSynthError
from megatron_synth.engines import Completion
from megatron_synth.runs import Progress
from megatron_synth.synthesis import SynthesisConfig, synthesize
from megatron_synth.tokens import Tokenizer


class SlowEngine(ScriptedEngine):
    """Takes its time for each answer, so that it can be killed in the middle."""

    seconds = 0.0

    def step(self) -> list[Completion]:
        time.sleep(self.seconds)
        return super().step()


def start_engine(folder: Path, out: Path, seconds: float) -> SlowEngine:
    """For Ray: pickled by name. Notes the node that it is on."""
    import ray

    if ray.is_initialized():
        (out.parent / f"node-{ray.get_runtime_context().get_node_id()}").touch()
    engine = SlowEngine(Tokenizer.load(folder / "tokenizer"))
    engine.seconds = seconds
    return engine


def main(folder: Path, out: Path, settings: str, seconds: float) -> None:
    # What a script defines itself is pickled by value; a worker is to find it by name.
    from scripted_step import start_engine

    try:
        counts = synthesize(
            SynthesisConfig.model_validate_json(settings),
            folder / "documents.jsonl.zst",
            folder / "tokenizer",
            folder / "model",
            out,
            Progress(),
            make_engine=partial(start_engine, folder, out, seconds),
        )
    except MegatronSynthError as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")
        sys.exit(error.exit_status)
    sys.stdout.write(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
