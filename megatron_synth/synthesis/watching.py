"""Show how far the workers are, from the state files that they write."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from megatron_synth.runs import Progress
from megatron_synth.synthesis.config import SynthesisConfig
from megatron_synth.synthesis.places import Places
from megatron_synth.synthesis.state import ShardState, read_state

_WATCH_SECONDS = 0.5


@contextmanager
def watch(
    progress: Progress, config: SynthesisConfig, places: Places, items: int | None, gpus: float
) -> Iterator[None]:
    """Keep `progress` up to date while the block runs.

    Args:
        progress: Kept tokens of the target, or documents of `items` where there is no target.
        config: The step's settings.
        places: Where the state files are.
        items: Documents to be written where `config.tokens` is None.
        gpus: GPUs of one engine.
    """
    stop = threading.Event()

    def loop() -> None:
        started = False
        while not stop.wait(_WATCH_SECONDS):
            paths = [places.state(number) for number in range(config.shards)]
            states = [read_state(path) for path in paths if path.is_file()]
            if not states:
                continue
            kept, settled = (sum(getattr(s, n) for s in states) for n in ("kept_tokens", "settled"))
            target = config.tokens or items
            done = settled if config.tokens is None else min(kept, config.tokens)
            if not started:
                unit = "documents" if config.tokens is None else "tokens"
                progress.phase("generating", target, unit, done)
                started = True
            progress.update(done, note=describe_work(states, gpus, done / target if target else 0))

    thread = threading.Thread(target=loop, name="synthesis-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def describe_work(states: Sequence[ShardState], gpus: float, share: float) -> str:
    """What the shards have done, in a few words, and on GPUs what the whole will cost.

    Args:
        states: Of the shards that have begun.
        gpus: GPUs of one engine.
        share: Of the whole that is done, 0 to 1.
    """
    seconds = sum(state.seconds for state in states)
    tokens = sum(state.new_output_tokens for state in states)
    kept, settled = sum(s.kept for s in states), sum(s.settled for s in states)
    words = [f"{kept:,} of {settled:,} documents kept"]
    if seconds and tokens:
        words.append(f"{tokens / seconds:,.0f} output tokens/s an engine")
    if gpus and seconds:
        hours = seconds * gpus / 3600
        whole = f" of about {hours / share:,.2f}" if share else ""
        words.append(f"{hours:,.2f}{whole} GPU hours")
    return ", ".join(words)
