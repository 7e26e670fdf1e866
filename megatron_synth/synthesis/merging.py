"""The end of a synthesis step: the shards' files become one corpus."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from megatron_synth.config import RunError
from megatron_synth.corpus import Document, document_writer
from megatron_synth.corpus.document import from_record
from megatron_synth.synthesis.config import SynthesisConfig
from megatron_synth.synthesis.places import Places
from megatron_synth.synthesis.state import read_state
from megatron_synth.tokens import Tokenizer

DOCUMENTS = "documents.jsonl.zst"
DROPPED = "dropped.jsonl.zst"
_TOTALS = (
    "requests",
    "documents",
    "tokens",
    "prompt_tokens",
    "output_tokens",
    "surplus_requests",
    "asked_again",
    "special_spellings",
    "replacement_characters",
)


def merge_shards(
    config: SynthesisConfig, places: Places, tokenizer: Tokenizer, out: Path
) -> dict[str, Any]:
    """Join the shards' files, in order, and add up their counts.

    Args:
        config: The step's settings.
        places: Where the shards' files lie; every shard is done.
        tokenizer: The generator's.
        out: Gets `DOCUMENTS` and `DROPPED`.

    Returns:
        The counts of `run.synthesize` that come from the shards.

    Raises:
        RunError: No document passed the filters.
    """
    totals: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    with document_writer(out / DOCUMENTS) as kept_file, document_writer(out / DROPPED) as rest:
        for number in range(config.shards):
            generated = places.read_generated(number)
            assert generated is not None, "the pipeline ended, and a shard is not generated"
            totals["surplus_requests"] += generated.answers
            totals["asked_again"] += generated.asked_again
            for part in range(generated.parts):
                for document in read_part_file(places.kept(number, part)):
                    totals["special_spellings"] += bool(
                        tokenizer.count_special_spellings(document.text)
                    )
                    kept_file.write(document)
                for document in read_part_file(places.dropped(number, part)):
                    rest.write(document)
                counts = json.loads(places.counts(number, part).read_text(encoding="utf-8"))
                dropped.update(counts.pop("dropped"))
                totals.update(counts)
    totals["surplus_requests"] -= totals["requests"]
    if not totals["documents"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in dropped.most_common()) or "none"
        raise RunError(
            f"no document passed the filters; dropped: {reasons}",
            where=out / DROPPED,
            fix="Look at the answers there; the generator may be too weak for the method, or "
            "synthesis.filters too strict.",
        )
    states = [read_state(places.state(number)) for number in range(config.shards)]
    engines = min(config.workers * (config.ray.slurm_array or 1), config.shards)
    seconds = sum(s.seconds for s in states) / engines
    output_tokens = sum(s.new_output_tokens for s in states)
    return {
        **{name: totals[name] for name in _TOTALS},
        "dropped": dict(dropped.most_common()),
        "seconds": round(seconds, 2),
        "tokens_per_second": round(output_tokens / seconds, 1) if output_tokens else None,
    }


def read_part_file(path: Path) -> Iterator[Document]:
    """Documents of a part, in order."""
    # A part without documents is a whole file with no lines; `read_documents` would refuse it.
    with zstandard.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield from_record(json.loads(line), default_id="")
