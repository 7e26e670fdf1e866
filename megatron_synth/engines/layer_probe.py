"""Which layer of a language model embeds documents best? A small probe, without labels.

Each sampled document is cut into halves. At every layer the halves are embedded, and each half
looks for its partner among all halves of the other side: the layer where partners are found best
is the one whose states say what a document is about. Mean reciprocal rank decides, over both
directions; of equal layers the lower one, which costs less.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_synth.config import DataError
from megatron_synth.engines.encoder import TorchEncoder

HALF = 16
"""Fewest tokens of a half."""
_LONGEST = 512
_FEWEST = 8


def probe_layers(
    encoder: TorchEncoder, documents: Sequence[Sequence[int]], *, center: bool
) -> dict[str, Any]:
    """Measure every layer of a model that is still whole.

    Args:
        encoder: The model; its states after the last layer lose the final norm by this.
        documents: Token ids; those of fewer than 32 are left out.
        center: Subtract the mean of all halves, as embedding does with the corpus mean.

    Returns:
        `documents`, how many were used; `layers`, a list of `layer`, `top1` (share of halves whose
        nearest half is the partner) and `mrr` (mean reciprocal rank); `chosen`, a layer from 1.

    Raises:
        DataError: Fewer than eight documents are long enough.
    """
    long_enough = [d for d in documents if len(d) >= 2 * HALF]
    if len(long_enough) < _FEWEST:
        raise DataError(
            f"{len(long_enough)} documents of {2 * HALF} tokens are too few to choose a layer by",
            fix="Set embedding.layer to a number.",
        )
    limit = min(encoder.room, _LONGEST)
    halves: list[Sequence[int]] = []
    for document in long_enough:
        middle = len(document) // 2
        halves += [document[:middle][:limit], document[middle : 2 * middle][:limit]]
    states = encoder.encode_layers(halves)
    layers = [
        {"layer": layer, **retrieval(vectors[0::2], vectors[1::2], center=center)}
        for layer, vectors in enumerate(states, start=1)
    ]
    chosen = max(layers, key=lambda found: (round(found["mrr"], 4), -found["layer"]))["layer"]
    return {"documents": len(long_enough), "layers": layers, "chosen": int(chosen)}


def retrieval(
    first: NDArray[np.float32], second: NDArray[np.float32], *, center: bool
) -> dict[str, float]:
    """How well row i of `first` finds row i of `second` by cosine, and the other way round.

    Args:
        first: float32 [n, d].
        second: float32 [n, d].
        center: Subtract the mean of all rows first.
    """
    both = np.concatenate([first, second]).astype(np.float64)
    if center:
        both -= both.mean(0)
    both /= np.maximum(np.linalg.norm(both, axis=1, keepdims=True), 1e-12)
    cosine = both[: len(first)] @ both[len(first) :].T
    ranks = []
    for table in (cosine, cosine.T):
        own = np.diag(table)[:, None]
        # Of equals the partner comes last: a layer that tells nothing apart wins nothing.
        ranks.append((table >= own).sum(1))
    rank = np.concatenate(ranks)
    return {
        "top1": round(float((rank == 1).mean()), 4),
        "mrr": round(float((1 / rank).mean()), 4),
    }
