"""Bytes to lines: plain, gzip and zstd files, in bounded memory, damage and all."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from megatron_synth.config import DataError
from megatron_synth.corpus.files import shown_path
from megatron_synth.runs import get_logger

_BLOCK = 1 << 18
_ZSTD_PIECE = 2048
_LONGEST_LINE = 64 << 20

OnBytes = Callable[[int], None]

_log = get_logger(__name__)


class TooLong:
    """Stands for a line that is longer than any line we hold in memory."""

    reason = f"line over {_LONGEST_LINE >> 20} MB"


class Broken:
    """Stands for the rest of a file that cannot be read on."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def read_lines(
    path: Path, on_bytes: OnBytes | None = None, longest: int = _LONGEST_LINE
) -> Iterator[bytes | TooLong | Broken]:
    """Yield each line without its line break; memory is bounded by `longest`.

    See `read_blocks`.
    """
    for block in read_blocks(path, on_bytes, longest):
        if isinstance(block, (TooLong, Broken)):
            yield block
        else:
            yield from block.removesuffix(b"\n").split(b"\n")


def read_blocks(
    path: Path,
    on_bytes: OnBytes | None = None,
    longest: int = _LONGEST_LINE,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[bytes | TooLong | Broken]:
    """Yield blocks of whole lines, line breaks included (the last line may have none).

    A line longer than `longest` bytes comes as `TooLong`; where a compressed file is cut short
    or damaged, the whole lines before that place come first, then one `Broken`.

    Args:
        path: The file; `.gz`, `.zst` and `.zstd` are decompressed.
        on_bytes: Called with the bytes read from disk, a block at a time.
        longest: Longest line held, in bytes.
        start: Of a plain file: byte to begin at, the first of a line.
        stop: Of a plain file: byte to end before, the first of a line; None is the end.

    Raises:
        DataError: The file cannot be opened.
    """
    carry: list[bytes] = []
    held = 0
    skipping = False
    try:
        for block in _blocks(path, on_bytes, start, stop):
            # Only where some line may be too long is each of them looked at.
            one_by_one = skipping or held + len(block) > longest
            begin = 0
            while end := (block.find(b"\n", begin) if one_by_one else block.rfind(b"\n")) + 1:
                if skipping or (one_by_one and held + end - begin - 1 > longest):
                    yield TooLong()
                else:
                    yield b"".join([*carry, block[begin:end]])
                carry, held, skipping, begin = [], 0, False, end
                if not one_by_one:
                    break
            if begin < len(block) and not skipping:
                carry.append(block[begin:])
                held += len(block) - begin
            if held > longest:
                carry, held, skipping = [], 0, True
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        # How many rows are lost nobody knows: they count as one, so the file is named aloud.
        reason = f"the compressed file is cut short or damaged from here on: {error}"
        _log.warning("%s: %s", shown_path(path), reason)
        yield Broken(reason)  # what is left in `carry` is part of a line
        return
    if skipping:
        yield TooLong()
    elif carry:
        yield b"".join(carry)


def open_to_read(path: Path) -> BinaryIO:
    """Open a file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return path.open("rb")
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise DataError(f"cannot be read: {reason}", where=path) from error


def is_compressed(path: Path) -> bool:
    """Whether `read_blocks` decompresses the file: it can only be read from its beginning."""
    return path.suffix in (".gz", ".zst", ".zstd")


def line_start(path: Path, offset: int) -> int:
    """The first byte at or after `offset` that begins a line; the file's size where none does."""
    if offset <= 0:
        return 0
    with open_to_read(path) as file:
        file.seek(offset - 1)
        position = offset - 1
        while block := file.read(_BLOCK):
            found = block.find(b"\n")
            if found >= 0:
                return position + found + 1
            position += len(block)
    return position


def _blocks(path: Path, on_bytes: OnBytes | None, start: int, stop: int | None) -> Iterator[bytes]:
    with open_to_read(path) as file:
        file.seek(start)
        source = _counted(file.read, on_bytes, None if stop is None else stop - start)
        if path.suffix == ".gz":
            yield from _inflate(source)
        elif is_compressed(path):
            yield from _unzstd(source)
        else:
            yield from source


def _counted(
    read: Callable[[int], bytes], on_bytes: OnBytes | None, left: int | None
) -> Iterator[bytes]:
    while block := read(_BLOCK if left is None else min(_BLOCK, left)):
        if left is not None:
            left -= len(block)
        if on_bytes is not None:
            on_bytes(len(block))
        yield block


def _inflate(source: Iterator[bytes]) -> Iterator[bytes]:
    """Gzip, any number of members."""
    engine = None
    for block in source:
        data = block
        while data:
            engine = engine or zlib.decompressobj(wbits=31)
            yield engine.decompress(data, _BLOCK * 4)
            while engine.unconsumed_tail:
                yield engine.decompress(engine.unconsumed_tail, _BLOCK * 4)
            data = b""
            if engine.eof:
                data = engine.unused_data.lstrip(b"\0")  # padding between members is allowed
                engine = None
    if engine is not None:
        raise EOFError("the end-of-stream marker is missing")


def _unzstd(source: Iterator[bytes]) -> Iterator[bytes]:
    """Zstandard, any number of frames."""
    engine = None
    out: list[bytes] = []
    for block in source:
        # 4 bytes can stand for 128 KB: small pieces bound what one call gives, here to 64 MB.
        for begin in range(0, len(block), _ZSTD_PIECE):
            data = block[begin : begin + _ZSTD_PIECE]
            while data:
                engine = engine or zstandard.ZstdDecompressor().decompressobj()
                try:
                    out.append(engine.decompress(data))
                except zstandard.ZstdError:
                    yield b"".join(out)  # what came before the damage is good
                    raise
                data = b""
                if engine.eof:
                    data = engine.unused_data
                    engine = None
            if sum(map(len, out)) >= _BLOCK:
                yield b"".join(out)
                out = []
    yield b"".join(out)
    if engine is not None:
        raise EOFError("the end of the last frame is missing")
