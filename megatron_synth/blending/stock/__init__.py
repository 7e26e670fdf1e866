"""Plans in the hands of stock Megatron: its datasets and order, its files, its `pretrain`.

`StockStreams` serves a plan with `order: megatron` from Megatron-Core's own datasets; `export`
writes the files of Megatron-LM, Megatron-Bridge and NeMo 2; `blend_provider` gives our streams to
`pretrain_gpt.py`, with everything that a plan promises. Nothing of the other rooms depends on it.
"""

from typing import TYPE_CHECKING, Any

from megatron_synth.blending.stock.exports import export

if TYPE_CHECKING:
    from megatron_synth.blending.stock.index import StockOptions
    from megatron_synth.blending.stock.provider import blend_provider
    from megatron_synth.blending.stock.streams import StockStreams, stock_evaluation

_NEED_TORCH = {
    "StockOptions": "index",
    "StockStreams": "streams",
    "blend_provider": "provider",
    "stock_evaluation": "streams",
}

__all__ = ["StockOptions", "StockStreams", "blend_provider", "export", "stock_evaluation"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for."""
    if name not in _NEED_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_NEED_TORCH[name]}"), name)
