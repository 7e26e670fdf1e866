"""What a person sees while a synthesis runs."""

import time

from megatron_synth.runs import Progress
from megatron_synth.synthesis import SynthesisConfig
from megatron_synth.synthesis.places import Places
from megatron_synth.synthesis.state import ShardState, write_state
from megatron_synth.synthesis.watching import describe_work, watch


def test_on_gpus_the_cost_so_far_and_of_the_whole_is_shown():
    states = [
        ShardState(settled=600, kept=500, new_output_tokens=3_000_000, seconds=1800.0),
        ShardState(settled=400, kept=400, new_output_tokens=1_000_000, seconds=1800.0),
    ]
    assert describe_work(states, gpus=2, share=0.25) == (
        "900 of 1,000 documents kept, 1,111 output tokens/s an engine, 2.00 of about 8.00 GPU hours"
    )


def test_without_gpus_and_before_the_first_answer_nothing_is_made_up():
    assert describe_work([ShardState()], gpus=0, share=0.0) == "0 of 0 documents kept"
    begun = [ShardState(seconds=36.0)]
    assert describe_work(begun, gpus=1, share=0.0) == "0 of 0 documents kept, 0.01 GPU hours"


def test_progress_follows_the_state_files(tmp_path):
    config = SynthesisConfig(method="sbp", tokens=1000, shards=2)
    places = Places(tmp_path, tmp_path)
    write_state(places.state(0), ShardState(settled=8, kept=6, kept_tokens=300))
    progress = Progress()
    seen = []
    progress.phase = lambda *what: seen.append(("phase", *what))
    progress.update = lambda done, note="": seen.append(("update", done, note))
    with watch(progress, config, places, None, 0.0):
        until = time.monotonic() + 20
        while len(seen) < 2 and time.monotonic() < until:
            time.sleep(0.05)
    assert seen[:2] == [
        ("phase", "generating", 1000, "tokens", 300),
        ("update", 300, "6 of 8 documents kept"),
    ]
