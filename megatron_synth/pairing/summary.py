"""What pairing found, for a person to read: similarities, drops by reason, samples."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from megatron_synth.config import DataError
from megatron_synth.pairing.bins import (
    Labels,
    chance_of_a_label,
    describe_bins,
    describe_per_document,
)
from megatron_synth.pairing.config import PairConfig
from megatron_synth.pairing.neighbours import Candidates

if TYPE_CHECKING:
    from pathlib import Path

    from megatron_synth.pairing.pairs import Selection

_BIN = 0.02
_SAMPLES = 6
_SAMPLE_CHARACTERS = 1500
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


def describe(
    config: PairConfig,
    candidates: Candidates,
    selection: "Selection",
    ids: Sequence[str],
    texts: Sequence[str],
    labels: Labels | None = None,
) -> dict[str, Any]:
    """The content of `report.json`.

    Args:
        config: Its seed draws the samples.
        candidates: What was found.
        selection: What became of it.
        ids: Of the documents, by number.
        texts: Of the documents, by number.
        labels: Of the documents, by number; None: none are compared.

    Returns:
        `counts` (see `find_pairs`); `histogram`: `edges` [b + 1], `neighbours` [b] and `pairs`
        [b]; `bins`: rows of `bins.describe_bins`; `label_chance`: share of pairs drawn at random
        that have a label in common, None without labels; `per_document`: d2 of each d1, see
        `bins.describe_per_document`; `quantiles` of the neighbours' similarities and of each
        document's nearest one; `samples` and `near_duplicate_samples`: lists of `d1`, `d2` (ids),
        `similarity`, `d1_text`, `d2_text` (cut at 1,500 characters).
    """
    kept = selection.kept
    nearest = np.zeros(len(ids), np.float32)
    np.maximum.at(nearest, candidates.d1, candidates.similarity)
    histogram = _histogram(candidates.similarity, candidates.similarity[kept])
    return {
        "counts": {
            "pairs": len(kept),
            "threshold": selection.threshold,
            "target_pairs": config.target_pairs,
            "documents": len(ids),
            "documents_as_d1": len(np.unique(candidates.d1[kept])),
            "documents_as_d2": len(np.unique(candidates.d2[kept])),
            "index": candidates.index,
            "candidates": len(candidates.d1),
            "dropped": {"self": candidates.self_pairs, **selection.drops},
        },
        "histogram": histogram,
        "bins": describe_bins(candidates, histogram["edges"], texts, labels, config.seed),
        "label_chance": None if labels is None else chance_of_a_label(labels, config.seed),
        "per_document": describe_per_document(candidates.d1[kept], len(ids)),
        "quantiles": {
            "neighbours": _quantiles(candidates.similarity),
            "nearest": _quantiles(nearest),
        },
        "samples": _samples(kept, candidates, ids, texts, config.seed),
        "near_duplicate_samples": _samples(
            selection.near_duplicates, candidates, ids, texts, config.seed, 2
        ),
    }


def too_few(
    config: PairConfig,
    candidates: Candidates,
    drops: dict[str, int],
    found: int,
    embeddings: "Path",
) -> DataError:
    """The error for too few pairs, with what other thresholds would give."""
    similarity = candidates.similarity
    if not len(similarity):
        return DataError(
            "no document has a neighbour",
            where=embeddings,
            fix="Are all embeddings zero, or is there one document only?",
        )
    quantiles = ", ".join(f"{q}: {value:.3f}" for q, value in _quantiles(similarity).items())
    wanted = sorted({config.min_pairs, 10 * config.min_pairs, len(similarity)})
    offers = "; ".join(
        f"{float(np.nextafter(similarity[n - 1], np.float32(-1))):.4f} gives {n:,}"
        for n in wanted
        if 0 < n <= len(similarity)
    )
    return DataError(
        f"{found:,} pairs, fewer than min_pairs = {config.min_pairs:,}. "
        f"Of {len(similarity):,} neighbour relations, dropped: "
        + ", ".join(f"{reason} {count:,}" for reason, count in drops.items())
        + f". Quantiles of their similarity: {quantiles}",
        where=embeddings,
        fix=f"Thresholds, before near-duplicates are dropped: {offers}. Or set target_pairs, more "
        "neighbours, or a smaller min_pairs.",
    )


def _histogram(
    similarity: NDArray[np.float32], kept: NDArray[np.float32]
) -> dict[str, list[float] | list[int]]:
    low = float(np.floor(similarity.min() / _BIN) * _BIN) if len(similarity) else 0.0
    bins = max(1, round((1 - low) / _BIN))
    edges = np.linspace(low, 1.0, bins + 1)

    def count(values: NDArray[np.float32]) -> list[int]:
        # Rounding can put a copy's similarity a hair over 1.
        counted: list[int] = np.histogram(np.clip(values, low, 1), edges)[0].tolist()
        return counted

    return {
        "edges": [round(float(edge), 4) for edge in edges],
        "neighbours": count(similarity),
        "pairs": count(kept),
    }


def _quantiles(values: NDArray[np.float32]) -> dict[str, float]:
    found = np.quantile(values, _QUANTILES) if len(values) else np.zeros(len(_QUANTILES))
    return {f"{q:g}": round(float(v), 4) for q, v in zip(_QUANTILES, found, strict=True)}


def _samples(
    places: NDArray[np.int64],
    candidates: Candidates,
    ids: Sequence[str],
    texts: Sequence[str],
    seed: int,
    count: int = _SAMPLES,
) -> list[dict[str, Any]]:
    """One drawn pair from each of `count` equal slices, from the most to the least similar."""
    generator = np.random.default_rng(seed)
    slices = np.array_split(places, min(count, len(places))) if len(places) else []
    samples = []
    for part in slices:
        place = int(generator.choice(part))
        first, second = int(candidates.d1[place]), int(candidates.d2[place])
        samples.append(
            {
                "d1": ids[first],
                "d2": ids[second],
                "similarity": round(float(candidates.similarity[place]), 4),
                "d1_text": texts[first][:_SAMPLE_CHARACTERS],
                "d2_text": texts[second][:_SAMPLE_CHARACTERS],
            }
        )
    return samples
