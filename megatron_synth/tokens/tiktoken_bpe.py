"""tiktoken: byte-level BPE from a file of ranks."""

import base64
import binascii
import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_synth.config import DataError
from megatron_synth.runs import hash_file
from megatron_synth.tokens.tiktoken_encodings import ENCODINGS, PATTERNS
from megatron_synth.tokens.tokenizer import Tokenizer, refuse_invalid, thread_count
from megatron_synth.tokens.tokenizer_config import read_json_object, refuse_role

_END = "<|endoftext|>"
_URL = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
_KEYS = {"pattern", "special_tokens", "eos_token", "bos_token"}


class TiktokenTokenizer(Tokenizer):
    """A tiktoken encoding.

    Args:
        source: What `Tokenizer.load` takes to load it again.
        path: Rank file: base64 of a byte string, a blank and its rank on each line.
        settings: What the rank file does not hold: `pattern` (a split expression, or a key of
            `PATTERNS`), `special_tokens` (spelling -> id), `eos_token` (default
            `<|endoftext|>`), `bos_token` (optional).

    Raises:
        DataError: The package is absent, a file is damaged, or there is no EOS.
    """

    def __init__(self, source: str, path: Path, settings: Mapping[str, Any]) -> None:
        try:
            import tiktoken
        except ImportError as error:
            raise DataError(
                "tiktoken tokenizers need the package tiktoken",
                where=path,
                fix="pip install tiktoken",
            ) from error
        self.path = path
        specials: dict[str, int] = dict(settings["special_tokens"])
        pattern = str(settings["pattern"])
        self.pattern = PATTERNS.get(pattern, pattern)
        ranks = _read_ranks(path)
        _refuse_collisions(specials, ranks, path)
        eos, bos = settings.get("eos_token", _END), settings.get("bos_token")
        if eos not in specials:
            raise refuse_role("eos_token", eos, path)
        if bos is not None and bos not in specials:
            raise refuse_role("bos_token", bos, path)
        try:
            self._model = tiktoken.Encoding(
                path.stem, pat_str=self.pattern, mergeable_ranks=ranks, special_tokens=specials
            )
        except ValueError as error:
            raise DataError(f"the split expression is not valid: {error}", where=path) from error
        super().__init__(
            source,
            path.parent,
            vocab_size=max(*ranks.values(), *specials.values()) + 1,
            eos_id=specials[eos],
            bos_id=None if bos is None else specials[bos],
            special_spellings=specials,
            unknown=None,
        )

    @classmethod
    def from_file(cls, path: Path) -> "TiktokenTokenizer":
        """A rank file with a JSON file of the same name beside it, or with a published name.

        Raises:
            DataError: It has neither, so that its split expression is unknown.
        """
        beside = path.with_suffix(".json")
        if beside.is_file():
            return cls(str(path), path, _read_settings(beside))
        if path.stem in ENCODINGS:
            return cls(str(path), path, _published(path.stem))
        raise DataError(
            "a rank file holds neither its split expression nor its special tokens",
            where=path,
            fix=f'Put {beside.name} beside it: {{"pattern": "cl100k_base", "special_tokens": '
            f'{{"{_END}": 100257}}}}, pattern being a regular expression or one of '
            f"{', '.join(PATTERNS)}; or give the file a published name "
            f"({', '.join(ENCODINGS)}).",
        )

    @classmethod
    def from_name(cls, name: str) -> "TiktokenTokenizer":
        """A published encoding, from tiktoken's cache or fetched into it.

        Raises:
            DataError: It is not in the cache, and cannot be fetched.
        """
        return cls(name, _cached_ranks(name), _published(name))

    def _content(self) -> Mapping[str, Any]:
        return {
            "tiktoken": hash_file(self.path),
            "pattern": self.pattern,
            "specials": self.special_spellings,
        }

    def encode_batch(self, texts: Sequence[str], *, keep_special: bool = False) -> list[list[int]]:
        """See `Tokenizer.encode_batch`."""
        refuse_invalid(texts)
        threads = thread_count()
        if keep_special:
            return self._model.encode_batch(
                list(texts), num_threads=threads, allowed_special="all", disallowed_special=()
            )
        return self._model.encode_ordinary_batch(list(texts), num_threads=threads)

    def decode(self, ids: Iterable[int], *, keep_special: bool = False) -> str:
        """See `Tokenizer.decode`; bytes that are no UTF-8 become replacement characters."""
        left_out = frozenset() if keep_special else self.special_ids
        kept = [int(i) for i in ids if i not in left_out and 0 <= i < self.vocab_size]
        try:
            return self._model.decode(kept)
        except KeyError:  # an id in a gap of the ranks
            return b"".join(map(self._bytes_of, kept)).decode("utf-8", errors="replace")

    def _bytes_of(self, number: int) -> bytes:
        try:
            return self._model.decode_single_token_bytes(number)
        except KeyError:
            return b""


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    number = 0
    try:
        with path.open("rb") as lines:
            for line in lines:
                number += 1
                if line.strip():
                    token, rank = line.split()
                    ranks[base64.b64decode(token, validate=True)] = int(rank)
    except OSError as error:
        raise DataError(f"cannot read it: {error.strerror}", where=path) from error
    except (ValueError, binascii.Error) as error:
        raise DataError(
            f"line {number} is not a base64 string, a blank and a rank", where=path
        ) from error
    absent = sum(bytes([byte]) not in ranks for byte in range(256))
    if absent or len(set(ranks.values())) != len(ranks) or min(ranks.values()) < 0:
        what = f"{absent} of the 256 bytes have no rank" if absent else "ranks are not distinct"
        raise DataError(f"no complete rank file: {what}", where=path)
    return ranks


def _refuse_collisions(specials: Mapping[str, int], ranks: dict[bytes, int], path: Path) -> None:
    if len(set(specials.values())) != len(specials) or "" in specials:
        raise DataError("special tokens must have distinct ids and be no empty text", where=path)
    taken = set(ranks.values())
    for spelling, number in specials.items():
        if number in taken:
            raise DataError(
                f"special token {spelling!r} has id {number}, which is a rank of the file too",
                where=path,
                fix="Is it the whole file, and the right one for these special tokens?",
            )


def _read_settings(path: Path) -> dict[str, Any]:
    settings = read_json_object(path)
    specials = settings.get("special_tokens")
    well_formed = (
        set(settings) <= _KEYS
        and isinstance(settings.get("pattern"), str)
        and isinstance(specials, dict)
        and all(isinstance(number, int) and number >= 0 for number in specials.values())
    )
    if not well_formed:
        raise DataError(
            "this must say how the rank file beside it is used",
            where=path,
            fix=f'Like {{"pattern": "...", "special_tokens": {{"{_END}": 50256}}}}; allowed keys: '
            f"{', '.join(sorted(_KEYS))}.",
        )
    return settings


def _published(name: str) -> dict[str, Any]:
    encoding = ENCODINGS[name]
    return {"pattern": encoding.pattern, "special_tokens": encoding.specials}


def _cached_ranks(name: str) -> Path:
    """The rank file in tiktoken's own cache, fetched by tiktoken where it is absent."""
    ranks = ENCODINGS[name].ranks
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    cache = Path(folder) if folder else Path(tempfile.gettempdir()) / "data-gym-cache"
    path = cache / hashlib.sha1(_URL.format(ranks).encode()).hexdigest()
    if path.is_file():
        return path
    fix = (
        f'Fetch it where there is a network (python -c "import tiktoken; '
        f"tiktoken.get_encoding('{ranks}')\") with TIKTOKEN_CACHE_DIR set, copy that folder and "
        f"set the variable here; or give the path of {ranks}.tiktoken."
    )
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise DataError("not in tiktoken's cache, and HF_HUB_OFFLINE is set", where=name, fix=fix)
    try:
        import tiktoken

        tiktoken.get_encoding(ranks)
    except (OSError, ValueError, ImportError) as error:  # requests' errors are OSErrors
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"not in tiktoken's cache, and cannot be fetched: {line}", where=name, fix=fix
        ) from error
    if not path.is_file():
        raise DataError("tiktoken keeps no cache here", where=name, fix=fix)
    return path
