"""Which encoder: gigatoken where a sample proves that it gives the same ids."""

from collections.abc import Sequence

from megatron_synth.config import DataError
from megatron_synth.corpus.columns import Part, read_columns, texts_of
from megatron_synth.packing.config import PackConfig
from megatron_synth.runs import get_logger
from megatron_synth.tokens import Tokenizer
from megatron_synth.tokens.fast import FastEncoder, open_fast, prove_fast

ENCODERS = ("auto", "gigatoken", "tokenizer")
_PLACES = 3
_CHARACTERS = 100_000

_log = get_logger(__name__)


def choose_encoder(
    tokenizer: Tokenizer, parts: Sequence[Part], config: PackConfig, wanted: str = "auto"
) -> FastEncoder | None:
    """The fast encoder, if it is proven to give the tokenizer's ids; None means the tokenizer.

    Args:
        tokenizer: The reference.
        parts: Of the corpus: the sample is drawn from its beginning, middle and end.
        config: Which columns hold texts.
        wanted: One of `ENCODERS`: `auto`, `tokenizer` (no fast one), or `gigatoken` (an error
            where it cannot be).

    Raises:
        DataError: `gigatoken` is wanted, and does not give the same ids.
    """
    if wanted == "tokenizer":
        return None
    fast = open_fast(tokenizer)
    reason = "it cannot be had for this tokenizer"
    if fast is not None:
        difference = prove_fast(fast, tokenizer, _sample(parts, config))
        if difference is None:
            _log.info("encoder: gigatoken, proven on a sample to give the tokenizer's ids")
            return fast
        reason = difference
    if wanted == "gigatoken":
        raise DataError(
            f"gigatoken does not serve: {reason}",
            where=tokenizer.folder,
            fix="Leave encoder at auto: the tokenizer itself encodes then, more slowly.",
        )
    _log.warning("encoder: the tokenizer itself, not gigatoken (%s): slower", reason)
    return None


def _sample(parts: Sequence[Part], config: PackConfig) -> list[str]:
    """Texts from the first block of the first, middle and last part."""
    places = sorted({len(parts) * i // _PLACES for i in range(_PLACES)} & set(range(len(parts))))
    texts: list[str] = []
    for place in places:
        rows = next(iter(read_columns(parts[place], config.columns)), None)
        for column in rows.texts if rows else ():
            taken = 0
            for value in column:
                for text in texts_of(value):
                    texts.append(text[: max(0, _CHARACTERS - taken)])
                    taken += len(text)
                if taken >= _CHARACTERS:
                    break
    return texts
