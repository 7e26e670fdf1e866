"""SentencePiece models: BPE, Unigram, with or without byte fallback."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_synth.config import DataError
from megatron_synth.runs import hash_file
from megatron_synth.tokens.tokenizer import Tokenizer, refuse_invalid, thread_count
from megatron_synth.tokens.tokenizer_config import CONFIG, read_json_object, refuse_role, token_of


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece `*.model` file.

    EOS and BOS are those of the model, or what a `tokenizer_config.json` beside it names. Its
    control pieces are the special tokens; the library never makes them out of text. With
    `keep_special` the text is cut at their spellings and each part is encoded as a text of its
    own, so it gets its own dummy prefix.

    Args:
        path: The file.

    Raises:
        DataError: The package is absent, the file is damaged, or there is no EOS.
    """

    def __init__(self, path: Path) -> None:
        try:
            import sentencepiece
        except ImportError as error:
            raise DataError(
                "SentencePiece tokenizers need the package sentencepiece",
                where=path,
                fix="pip install sentencepiece",
            ) from error
        self.path = path
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(path.read_bytes())
            size = self._model.GetPieceSize()
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"no SentencePiece model: {_line(error)}",
                where=path,
                fix="A tokenizer.model that holds tiktoken ranks (Llama 3 has one) must be named "
                "*.tiktoken, with a JSON file beside it.",
            ) from error
        if not size:
            raise DataError("no SentencePiece model: it has no pieces", where=path)
        control = self._model.IsControl(list(range(size)))
        specials = {self._model.IdToPiece(i): i for i in range(size) if control[i]}
        super().__init__(
            str(path),
            path.parent,
            vocab_size=size,
            eos_id=self._control_id("eos_token", specials),
            bos_id=self._optional_id("bos_token", specials),
            special_spellings=specials,
            unknown=None,
        )

    def _content(self) -> Mapping[str, Any]:
        return {"sentencepiece": hash_file(self.path)}

    def encode_batch(self, texts: Sequence[str], *, keep_special: bool = False) -> list[list[int]]:
        """See `Tokenizer.encode_batch`."""
        refuse_invalid(texts)
        if not keep_special:
            return self._encode(list(texts))
        cut = [list(self._spellings.cut(text)) for text in texts]
        parts = iter(
            self._encode([part for parts in cut for part in parts if isinstance(part, str)])
        )
        return [
            [i for part in parts_of for i in (next(parts) if isinstance(part, str) else [part])]
            for parts_of in cut
        ]

    def decode(self, ids: Iterable[int], *, keep_special: bool = False) -> str:
        """See `Tokenizer.decode`."""
        spelled = {i: spelling for spelling, i in self.special_spellings.items()}
        out: list[str] = []
        part: list[int] = []
        for i in ids:
            if i in spelled and keep_special:
                out += [self._model.Decode(part), spelled[i]]
                part = []
            elif i not in spelled and 0 <= i < self.vocab_size:
                part.append(int(i))
        return "".join([*out, self._model.Decode(part)])

    def _encode(self, texts: list[str]) -> list[list[int]]:
        threads = min(thread_count(), max(1, len(texts)))
        encoded: list[list[int]] = self._model.Encode(texts, out_type=int, num_threads=threads)
        return encoded

    def _control_id(self, role: str, specials: dict[str, int]) -> int:
        number = self._optional_id(role, specials)
        if number is None:
            raise DataError(
                "this SentencePiece model has no end-of-sentence piece",
                where=self.path,
                fix=f"Name one of its control pieces as {role} in a {CONFIG} beside it: documents "
                "must end with EOS.",
            )
        return number

    def _optional_id(self, role: str, specials: dict[str, int]) -> int | None:
        config = self.path.parent / CONFIG
        entry = token_of(read_json_object(config), role) if config.is_file() else None
        if entry:
            if not isinstance(entry, str) or entry not in specials:
                raise refuse_role(role, entry, config)
            return specials[entry]
        number = self._model.eos_id() if role == "eos_token" else self._model.bos_id()
        return int(number) if number >= 0 else None


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
