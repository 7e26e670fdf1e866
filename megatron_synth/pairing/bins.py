"""What pairs are like at each similarity: how many are duplicates, how many share a label.

Where a threshold should lie is read off this table: under it pairs have nothing to do with each
other, near 1 they are copies. The rate by chance says what a label is worth.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_synth.corpus import Document, shares_shingle
from megatron_synth.corpus.lengths import describe_lengths
from megatron_synth.pairing.neighbours import Candidates

Labels = Sequence[frozenset[str] | None]
"""Of each document; None where it has none."""

_SAMPLES = 500
_BY_CHANCE = 20_000


def read_labels(document: Document, key: str) -> frozenset[str] | None:
    """The labels under `key` of the metadata: one string or number, or a list of them."""
    value = document.metadata.get(key)
    values = value if isinstance(value, list) else [value]
    found = frozenset(str(v) for v in values if isinstance(v, (str, int)) and v != "")
    return found or None


def describe_bins(
    candidates: Candidates,
    edges: Sequence[float],
    texts: Sequence[str],
    labels: Labels | None,
    seed: int,
) -> list[dict[str, Any]]:
    """A row for each bin of the similarity that holds a neighbour relation.

    Args:
        candidates: All neighbour relations that were found.
        edges: [bins + 1], rising; the last bin holds its upper edge too.
        texts: Of the documents, by number.
        labels: Of the documents, by number; None where there is nothing to compare.
        seed: Of the sample: at most 500 relations of each bin are looked at.

    Returns:
        `low`, `high`, `neighbours` (how many relations), `sampled`, `duplicate` (share of the
        sample with a 13-token shingle in common), and with labels `labelled` (how many of the
        sample have labels on both sides) and `same_label` (share of these with one in common,
        None of none).
    """
    generator = np.random.default_rng(seed)
    similarity = np.clip(candidates.similarity, edges[0], edges[-1])
    places = np.clip(np.searchsorted(edges, similarity, "right") - 1, 0, len(edges) - 2)
    rows = []
    for number in np.unique(places).tolist():
        inside = np.flatnonzero(places == number)
        drawn = generator.permutation(inside)[:_SAMPLES]
        pairs = list(zip(candidates.d1[drawn].tolist(), candidates.d2[drawn].tolist(), strict=True))
        row: dict[str, Any] = {
            "low": float(edges[number]),
            "high": float(edges[number + 1]),
            "neighbours": len(inside),
            "sampled": len(pairs),
            "duplicate": sum(shares_shingle(texts[a], texts[b]) for a, b in pairs) / len(pairs),
        }
        if labels is not None:
            row["labelled"], row["same_label"] = _overlap(pairs, labels)
        rows.append(row)
    return rows


def chance_of_a_label(labels: Labels, seed: int) -> float | None:
    """Share of pairs of documents, drawn at random, that have a label in common; None of none."""
    known = np.flatnonzero([label is not None for label in labels])
    if len(known) < 2:
        return None
    drawn = known[np.random.default_rng(seed).integers(len(known), size=(_BY_CHANCE, 2))]
    pairs = [(a, b) for a, b in drawn.tolist() if a != b]
    return _overlap(pairs, labels)[1]


def describe_per_document(d1: NDArray[np.int64], documents: int) -> Mapping[str, Any]:
    """How many d2 the documents have as d1.

    Args:
        d1: int64 [pairs], the first document of each pair.
        documents: All of them; those without a pair count as 0.

    Returns:
        `mean`, `max`, `percentiles` and `histogram` (`0`, `1`, `2-3`, `4-7`, …), see
        `corpus.lengths`.
    """
    lengths = describe_lengths(np.bincount(d1, minlength=documents).tolist())
    return lengths.model_dump(include={"mean", "max", "percentiles", "histogram"})


def _overlap(pairs: Sequence[tuple[int, int]], labels: Labels) -> tuple[int, float | None]:
    both = [(labels[a], labels[b]) for a, b in pairs]
    known = [(a, b) for a, b in both if a is not None and b is not None]
    if not known:
        return 0, None
    return len(known), sum(not a.isdisjoint(b) for a, b in known) / len(known)
