"""A few synthetic documents beside their seeds, for a person to read."""

from itertools import islice
from pathlib import Path

from megatron_synth.corpus import read_documents
from megatron_synth.report import TextPair

_SAMPLES = 6
_CHARACTERS = 1200


def synthetic_samples(synthesis: Path, split: Path) -> list[TextPair]:
    """The first kept documents of `synthesis`, each with the organic document it came from."""
    made = list(islice(read_documents(synthesis / "documents.jsonl.zst"), _SAMPLES))
    wanted = {d.source_id for d in made}
    seeds = {d.id: d.text for d in read_documents(split / "organic.jsonl.zst") if d.id in wanted}
    return [
        TextPair(
            left_title=f"seed: {d.source_id}",
            left=seeds.get(d.source_id or "", "")[:_CHARACTERS],
            right_title=f"synthetic: {d.id}",
            right=d.text[:_CHARACTERS],
        )
        for d in made
    ]
