"""Which documents are validation: decided by group, before any tokenizer exists.

A group is what must not stand on both sides, such as a package whose documents quote each other.
The choice depends on the seed and the names alone, so every step that asks gets the same answer.
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from pydantic import Field

from megatron_synth.config import Config, DataError
from megatron_synth.corpus.document import Document
from megatron_synth.corpus.reading import read_documents

_SPARE = 1.5
"""Held out against wanted: some are dropped later as too long or as near-duplicates."""
_LARGEST_PARTS = (1 / 4, 1 / 2, 1)
"""Largest part of what is wanted that one group may be: the first that fills half of it."""


class HoldOutConfig(Config):
    """What is kept away from training."""

    validation_documents: int = Field(default=1000, ge=1)
    """Documents in the validation set, at most."""
    group: str | None = "package"
    """Metadata key whose values never stand on both sides; documents without it, and all
    documents where this is null, are held out one by one."""
    held_out_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the corpus that may be held out, at most."""
    seed: int = 0
    """Seed of this choice and of the draw."""


@dataclass(frozen=True)
class HeldOut:
    """The answer.

    Attributes:
        key: Metadata key of the groups, or None.
        groups: Groups that are held out.
        below: Documents without a group are held out where their hash is below this.
        seed: Of the hash.
        documents: How many documents are held out.
    """

    key: str | None
    groups: frozenset[str]
    below: int
    seed: int
    documents: int

    def holds(self, document: Document) -> bool:
        """Whether the document must not be trained on."""
        group = group_of(document, self.key)
        if group is not None:
            return group in self.groups
        return seeded_hash(self.seed, "hold out", document.id) < self.below


def choose_held_out(config: HoldOutConfig, documents: str | Path) -> HeldOut:
    """Choose the held-out groups and documents; one pass over `documents`.

    Groups come in an order drawn by the seed. One that alone would be over a quarter of what is
    wanted is passed over where smaller ones suffice, so that validation is not one package's voice.

    Raises:
        DataError: The corpus is empty, or so small or so lumpy that nothing can be held out.
    """
    sizes: Counter[str] = Counter()
    single = array("Q")
    for document in read_documents(documents):
        group = group_of(document, config.group)
        if group is None:
            single.append(seeded_hash(config.seed, "hold out", document.id))
        else:
            sizes[group] += 1
    total = sizes.total() + len(single)
    if not total:
        raise DataError("the corpus has no documents", where=str(documents))
    wanted = min(_SPARE * config.validation_documents, config.held_out_share * total)
    groups = _choose_groups(sizes, wanted * sizes.total() / total, config.seed)
    count = max(0, min(round(wanted * len(single) / total), len(single) - 1))
    below = int(np.partition(np.frombuffer(single, dtype=np.uint64), count)[count]) if count else 0
    held = sum(sizes[group] for group in groups) + count
    if not held:
        raise DataError(
            f"nothing can be held out of {total:,} documents in {len(sizes):,} groups "
            f"({config.held_out_share:.0%} may be)",
            where=str(documents),
            fix="Use a larger corpus, raise held_out_share, or set group to null.",
        )
    return HeldOut(config.group, groups, below, config.seed, held)


def training_texts(documents: str | Path, held_out: HeldOut) -> Iterator[str]:
    """Texts that may be trained on: what a tokenizer is trained on."""
    return (d.text for d in read_documents(documents) if not held_out.holds(d))


def group_of(document: Document, key: str | None) -> str | None:
    """The document's group, if it has one."""
    value = document.metadata.get(key) if key is not None else None
    return value if isinstance(value, str) else None


def seeded_hash(seed: int, purpose: str, name: str) -> int:
    """A number below 2^64 that looks random, equal for equal arguments."""
    return xxhash.xxh3_64_intdigest(f"{seed}\0{purpose}\0{name}".encode())


def _choose_groups(sizes: Counter[str], wanted: float, seed: int) -> frozenset[str]:
    order = sorted(sizes, key=lambda name: (seeded_hash(seed, "hold out", name), name))
    chosen: set[str] = set()
    for part in _LARGEST_PARTS:
        chosen, held = set(), 0
        for group in order:
            if sizes[group] <= max(1.0, min(wanted * part, wanted - held)):
                chosen.add(group)
                held += sizes[group]
            if held >= wanted:
                break
        if held >= wanted / 2:
            break
    return frozenset(chosen)
