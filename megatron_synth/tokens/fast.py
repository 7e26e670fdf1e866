"""gigatoken: the same ids many times faster, used only where that is proven.

Cost: 40 ms to import, 0.1 s to build for 32,000 ids. On one core of the machine that this was
written on: Wikipedia 77 MB/s while its cache fills, 320 MB/s after, against 2 to 3 MB/s.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_synth.config import RunError
from megatron_synth.runs import get_logger
from megatron_synth.tokens.proof import prove_fast
from megatron_synth.tokens.tokenizer import Tokenizer, refuse_invalid
from megatron_synth.tokens.young import holds_young

__all__ = ["FastEncoder", "open_fast", "prove_fast"]

_log = get_logger(__name__)

CACHE_BYTES = 192 << 20
"""Memory that an encoder's cache may take before it is begun anew.

gigatoken keeps every distinct word for ever. Measured with 32,000 ids: 400 MB of random words of
6 letters take 4.6 GB (12 bytes a byte of text), of 40 letters 2.1 GB; 54 MB of Wikipedia take 54
MB. Building the encoder anew gives all but 20 to 70 MB back to the system and takes 0.1 s; words
then cost again what they cost the first time (77 instead of 320 MB/s), so it should be rare.
"""

_CHECK_EVERY = 1 << 20
"""Characters between two looks at the memory: a look takes 2 microseconds."""

_WORST = 12
"""Bytes of cache a byte of text, where memory cannot be looked at."""

_STATM = Path("/proc/self/statm")


class FastEncoder:
    """Encodes one text at a time on the calling thread; not for several threads at once.

    Args:
        build: Makes a gigatoken backend with an empty cache.
        reference: Encodes the rare texts on which gigatoken is known to differ (see `young`).
        cache_bytes: Memory that the process may grow by before the cache is begun anew. One
            single text may exceed it: a text of N MB of words never seen grows it by 12 N MB.

    Attributes:
        text_bytes: UTF-8 bytes of all texts so far.
    """

    def __init__(
        self,
        build: Callable[[], Any],
        reference: Callable[[str], list[int]],
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._build = build
        self._reference = reference
        self._cache_bytes = cache_bytes
        self._check_every = _CHECK_EVERY if _STATM.exists() else max(1, cache_bytes // _WORST)
        self._backend: Any = None
        self.text_bytes = 0
        self._begin()

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Ids of one text, without BOS or EOS; spelled special tokens become control tokens.

        Returns:
            uint32, [tokens].

        Raises:
            DataError: The text holds a lone surrogate.
            RunError: gigatoken failed; `prove_fast` finds that before, as far as it looks.
        """
        self._since_check += len(text)
        if self._since_check >= self._check_every:
            self._bound()
        ids: NDArray[np.uint32]
        try:
            if text.isascii():
                self.text_bytes += len(text)
                ids = self._backend.encode(text)
                return ids
            utf8 = text.encode("utf-8")
            self.text_bytes += len(utf8)
            if holds_young(text, utf8):
                return np.array(self._reference(text), dtype=np.uint32)
            ids = self._backend.encode(utf8)
        except BaseException as error:
            _reraise_unless_foreign(error)
            refuse_invalid([text])
            raise RunError(
                f"gigatoken failed on the text {text[:60]!r}: {_line(error)}",
                fix="Encode with the tokenizer's own library.",
            ) from error
        return ids

    def _begin(self) -> None:
        self._backend = None  # first the old one goes, so that never two are in memory
        self._backend = self._build()
        self._since_check = 0
        self._before = _anonymous_bytes()

    def _bound(self) -> None:
        self._since_check = 0
        now = _anonymous_bytes()
        # Others' memory counts too, since only the whole process can be looked at; then the
        # cache is begun anew too early, once for each such growth.
        if now is None or self._before is None or now - self._before > self._cache_bytes:
            self._begin()


def open_fast(tokenizer: Tokenizer, *, cache_bytes: int = CACHE_BYTES) -> FastEncoder | None:
    """A gigatoken encoder for this tokenizer, not proven yet (see `prove_fast`).

    Args:
        tokenizer: Whose ids are wanted.
        cache_bytes: See `FastEncoder`.

    Returns:
        None where the package is absent or does not support this tokenizer; the log says why.
    """
    try:
        return FastEncoder(_builder(tokenizer), _reference(tokenizer), cache_bytes)
    except ImportError:
        reason = "the package gigatoken is not installed"
    except _Unsupported as error:
        reason = str(error)
    except BaseException as error:  # noqa: BLE001  a foreign parser: for any reason we fall back
        _reraise_unless_foreign(error)
        reason = f"gigatoken refuses it: {_line(error)}"
    _log.info("no fast encoder for %s: %s", tokenizer.source, reason)
    return None


class _Unsupported(Exception):  # noqa: N818  never leaves this file
    pass


def _reference(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    return lambda text: tokenizer.encode_batch([text], keep_special=True)[0]


def _builder(tokenizer: Tokenizer) -> Callable[[], Any]:
    import gigatoken

    from megatron_synth.tokens.hugging_face import HuggingFaceTokenizer

    if isinstance(tokenizer, HuggingFaceTokenizer):
        if tokenizer.normalizes_specials:
            raise _Unsupported("other texts than their spellings become special tokens")
        return lambda: gigatoken.Tokenizer.from_json(tokenizer.to_json()).backend

    from megatron_synth.tokens.sentence_piece import SentencePieceTokenizer
    from megatron_synth.tokens.tiktoken_bpe import TiktokenTokenizer

    if isinstance(tokenizer, SentencePieceTokenizer):
        return lambda: gigatoken.Tokenizer.from_sentencepiece(tokenizer.path).backend
    if isinstance(tokenizer, TiktokenTokenizer):
        from megatron_synth.tokens.tiktoken_encodings import GIGATOKEN_SCHEMES

        scheme = GIGATOKEN_SCHEMES.get(tokenizer.pattern)
        if scheme is None:
            raise _Unsupported("gigatoken does not know its split expression")
        return lambda: (
            gigatoken.Tokenizer.from_tiktoken(
                tokenizer.path, pretokenizer=scheme, special_tokens=tokenizer.special_spellings
            ).backend
        )
    raise _Unsupported(f"{type(tokenizer).__name__} is of no kind that gigatoken reads")


def _reraise_unless_foreign(error: BaseException) -> None:
    """Pass on what asks the process to end; a panic of Rust code is no `Exception` either."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _anonymous_bytes() -> int | None:
    """Memory of this process that is no mapped file; None where the system does not say."""
    try:
        _, resident, shared, *_ = _STATM.read_bytes().split()
    except OSError:
        return None
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
