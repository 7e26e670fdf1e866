"""Train a byte-level BPE tokenizer and save it so that every tool of the stack loads it."""

from collections.abc import Iterable
from pathlib import Path

import tokenizers
from pydantic import Field
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from megatron_synth.config import Config, ConfigError, DataError
from megatron_synth.runs import write_json
from megatron_synth.runs.atomic import atomic_write
from megatron_synth.tokens.tokenizer import SEPARATOR, Tokenizer

END_OF_TEXT = "<|endoftext|>"

_SPECIALS = (END_OF_TEXT, SEPARATOR)
_SMALLEST = 256 + len(_SPECIALS)
_LARGEST_CONTEXT = 1 << 30


class TokenizerConfig(Config):
    """How the experiment's own tokenizer is trained."""

    vocab_size: int = Field(default=4096, ge=_SMALLEST)
    """Tokens in all: 256 bytes, 2 special tokens, the rest merges."""


def train_tokenizer(texts: Iterable[str], vocab_size: int, out: Path) -> Tokenizer:
    """Train byte-level BPE on `texts` and save it in `out` in Hugging Face form.

    Id 0 is `<|endoftext|>` (EOS and padding), id 1 `<|separator|>` (between d1 and d2 of
    synthesizer tuning); neither is ever added by the tokenizer itself. Every byte is a token,
    so that any text survives `decode(encode(text))` unchanged. Equal texts in equal order give
    an equal file.

    Args:
        texts: Training texts; read once, in a stream.
        vocab_size: Tokens in all, at least 258. A small corpus may yield fewer.
        out: Folder for `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`.

    Raises:
        ConfigError: `vocab_size` has no room for the bytes and the special tokens.
        DataError: There are no texts.
    """
    if vocab_size < _SMALLEST:
        raise ConfigError(
            f"vocab_size is {vocab_size}, but the bytes and special tokens alone are {_SMALLEST}"
        )
    model = tokenizers.Tokenizer(models.BPE())
    # Its expression keeps letters and punctuation in separate pieces, so no merge can ever
    # build the spelling of a special token.
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=[AddedToken(s, special=True, normalized=False) for s in _SPECIALS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    seen = _Seen(texts)
    model.train_from_iterator(seen, trainer)
    if not seen.characters:
        raise DataError("no text to train a tokenizer on", fix="Check the corpus: it is empty.")
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "tokenizer.json") as handle:
        handle.write(model.to_str(pretty=True))
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_OF_TEXT,
            "pad_token": END_OF_TEXT,
            "additional_special_tokens": [SEPARATOR],
            "add_bos_token": False,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": _LARGEST_CONTEXT,
        },
    )
    write_json(
        out / "special_tokens_map.json",
        {
            "eos_token": END_OF_TEXT,
            "pad_token": END_OF_TEXT,
            "additional_special_tokens": [SEPARATOR],
        },
    )
    return Tokenizer.load(out)


class _Seen:
    """Passes texts on and counts their characters."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = iter(texts)
        self.characters = 0

    def __iter__(self) -> "_Seen":
        return self

    def __next__(self) -> str:
        text = next(self._texts)
        self.characters += len(text)
        return text
