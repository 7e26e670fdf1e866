"""Packed corpora in, training windows out, by an exact plan.

In: `.bin/.idx` corpora (packing) and a `BlendConfig`. `solve` turns sizes into a `Plan`: exact
windows, epochs and shares of every corpus, refused if it cannot be met. `BlendedStreams` serves
sample i of the plan in Megatron-Core's sample dict, `ChainedStreams` that of a run in phases;
`PairWindows` serves synthesizer tuning.
`Ledger` says what was used after any step, `audit` recounts it from the windows served.
Cost: planning reads sizes only and needs no torch. Serving keeps a quarter of a byte a document
for each open epoch; nothing grows with the number of samples.
"""

from typing import TYPE_CHECKING, Any

from megatron_synth.blending.chain import Chain
from megatron_synth.blending.config import Amount, BlendConfig, Budget, CorpusConfig, StreamConfig
from megatron_synth.blending.ledger import Ledger
from megatron_synth.blending.plan import Plan, PlannedCorpus
from megatron_synth.blending.sizes import CorpusSize, corpus_size, measure
from megatron_synth.blending.solver import solve
from megatron_synth.blending.sources import DeclaredSize, SelectConfig, SourceConfig

if TYPE_CHECKING:
    from megatron_synth.blending.batch import collate
    from megatron_synth.blending.pairs import PairWindows
    from megatron_synth.blending.recount import Audit, audit
    from megatron_synth.blending.streams import BlendedStreams, ChainedStreams

_NEED_TORCH = {
    "Audit": "recount",
    "BlendedStreams": "streams",
    "ChainedStreams": "streams",
    "PairWindows": "pairs",
    "audit": "recount",
    "collate": "batch",
}

__all__ = [
    "Amount",
    "Audit",
    "BlendConfig",
    "BlendedStreams",
    "Budget",
    "Chain",
    "ChainedStreams",
    "CorpusConfig",
    "CorpusSize",
    "DeclaredSize",
    "Ledger",
    "PairWindows",
    "Plan",
    "PlannedCorpus",
    "SelectConfig",
    "SourceConfig",
    "StreamConfig",
    "audit",
    "collate",
    "corpus_size",
    "measure",
    "solve",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for."""
    if name not in _NEED_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_NEED_TORCH[name]}"), name)
