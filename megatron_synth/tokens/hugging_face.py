"""Hugging Face fast tokenizers."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from megatron_synth.config import DataError
from megatron_synth.tokens.tokenizer import Tokenizer, refuse_invalid
from megatron_synth.tokens.tokenizer_config import CONFIG, read_json_object, refuse_role, token_of

_TOKENIZER = "tokenizer.json"


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizers` tokenizer (`tokenizer.json` and `tokenizer_config.json`).

    Args:
        folder: Where it was loaded from.
        model: The tokenizer; it is changed (padding and truncation off).
        config: Of `tokenizer_config.json`: names `eos_token`, perhaps `bos_token`.

    Raises:
        DataError: No EOS token, or control tokens come out of ordinary text.
    """

    def __init__(self, folder: Path, model: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
        model.no_padding()
        model.no_truncation()
        model.encode_special_tokens = True
        self._model = model
        eos_id = _control_id(config, "eos_token", model, folder)
        bos_id = (
            _control_id(config, "bos_token", model, folder) if config.get("bos_token") else None
        )
        added = model.get_added_tokens_decoder()
        specials = {token.content: number for number, token in added.items() if token.special}
        for role, number in (("eos_token", eos_id), ("bos_token", bos_id)):
            spelling = token_of(config, role)
            if number is not None and isinstance(spelling, str) and spelling not in specials:
                # transformers, too, makes special what the config names, whatever its flag.
                model.add_special_tokens([tokenizers.AddedToken(spelling, normalized=False)])
                specials[spelling] = number
        super().__init__(
            str(folder),
            folder,
            vocab_size=max(model.get_vocab(with_added_tokens=True).values()) + 1,
            eos_id=eos_id,
            bos_id=bos_id,
            special_spellings=specials,
            unknown=_unknown(model),
        )
        self._refuse_unsafe()

    @classmethod
    def from_folder(cls, folder: Path) -> "HuggingFaceTokenizer":
        """Load a folder in Hugging Face form."""
        path = folder / _TOKENIZER
        try:
            model = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more precise
            raise DataError(f"damaged tokenizer: {error}", where=path) from error
        try:
            config = read_json_object(folder / CONFIG)
        except FileNotFoundError:
            raise DataError(f"no {CONFIG} there: the EOS token is unknown", where=folder) from None
        return cls(folder, model, config)

    def encode_batch(self, texts: Sequence[str], *, keep_special: bool = False) -> list[list[int]]:
        """See `Tokenizer.encode_batch`."""
        model = self._keeping if keep_special else self._model
        try:
            batch = model.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            refuse_invalid(texts)
            raise
        return [encoding.ids for encoding in batch]

    def decode(self, ids: Iterable[int], *, keep_special: bool = False) -> str:
        """See `Tokenizer.decode`."""
        return self._model.decode(list(ids), skip_special_tokens=not keep_special)

    def to_json(self) -> str:
        """The content of `tokenizer.json`, every control token flagged as special."""
        return self._model.to_str()

    def _content(self) -> Mapping[str, Any]:
        return {"model": json.loads(self.to_json())}

    @cached_property
    def normalizes_specials(self) -> bool:
        """Whether other spellings than its own, normalised, may become a special token."""
        if self._model.normalizer is None:
            return False
        added = self._model.get_added_tokens_decoder().values()
        return any(token.special and token.normalized for token in added)

    @cached_property
    def _keeping(self) -> tokenizers.Tokenizer:
        # A second model, since the switch is one of the whole model and threads share it.
        model = tokenizers.Tokenizer.from_str(self._model.to_str())
        model.encode_special_tokens = False
        return model


def _control_id(
    config: dict[str, Any], role: str, model: tokenizers.Tokenizer, folder: Path
) -> int:
    content = token_of(config, role)
    number = model.token_to_id(content) if isinstance(content, str) else None
    if number is None:
        raise refuse_role(role, config.get(role), folder / CONFIG)
    return int(number)


def _unknown(model: tokenizers.Tokenizer) -> str | None:
    """Spelling of the token that the model gives for text that it does not know."""
    if isinstance(model.model, tokenizers.models.Unigram):
        number = json.loads(model.to_str())["model"].get("unk_id")
        return None if number is None else str(model.id_to_token(number))
    spelling = getattr(model.model, "unk_token", None)
    return spelling if isinstance(spelling, str) else None
