"""Packed corpora that were never written: exact counts, realistic lengths, no text.

The `.idx` is whole (20 bytes a document); the `.bin` has its full size and is sparse, or holds
random tokens. Beside them stands the `.json` that packing writes, with a made-up content hash.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_synth.packing.info import CorpusInfo, CorpusPaths, info_to_json, paths_of
from megatron_synth.packing.layout import CODES, HEADER, MAGIC, VERSION
from megatron_synth.runs import hash_json, write_json

LONGEST = 4095
_SHORTEST = 16
_SIGMA = 0.9  # of the logarithm of a length; web pages have about 1
_CHUNK = 1 << 20  # documents, and tokens, made at once
_TOKEN_BYTES = 2


@dataclass(frozen=True)
class MadeCorpus:
    """A corpus to be made.

    Attributes:
        name: Its name in the plan and on disk.
        documents: Documents.
        tokens: Tokens, exactly; 16 to 4095 a document.
        filled: Write random tokens; else the `.bin` is one hole.
        vocabulary: Ids that there are.
    """

    name: str
    documents: int
    tokens: int
    filled: bool = False
    vocabulary: int = 32_000

    def scaled(self, scale: float) -> "MadeCorpus":
        """The same with `scale` times the documents and tokens, under another name."""
        return replace(
            self,
            name=f"{self.name}-{scale:g}",
            documents=round(self.documents * scale),
            tokens=round(self.tokens * scale),
        )

    def prefix(self, folder: Path) -> Path:
        """Its path prefix in `folder`."""
        return folder / self.name

    def make(self, folder: Path) -> None:
        """Write its files into `folder`, unless they are there."""
        paths = paths_of(self.prefix(folder))
        info = self._info()
        if paths.info.is_file() and paths.info.stat().st_mtime > paths.idx.stat().st_mtime:
            return
        rng = np.random.default_rng([self.documents, self.tokens])
        folder.mkdir(parents=True, exist_ok=True)
        self._write_index(paths, rng)
        self._write_tokens(paths, rng)
        write_json(paths.info, info_to_json(info))

    def remove(self, folder: Path) -> None:
        """Remove its files."""
        paths = paths_of(self.prefix(folder))
        for path in (paths.info, paths.idx, paths.bin):
            path.unlink(missing_ok=True)

    def _write_index(self, paths: CorpusPaths, rng: np.random.Generator) -> None:
        """The `.idx`, chunk by chunk into its three regions."""
        count = self.documents
        pointers_at = HEADER.size + 4 * count
        borders_at = pointers_at + 8 * count
        location = _location(self.tokens / count)
        done = 0
        with paths.idx.open("wb") as file:
            file.write(HEADER.pack(MAGIC, VERSION, CODES["uint16"], count, count + 1))
            file.truncate(borders_at + 8 * (count + 1))
            for first in range(0, count, _CHUNK):
                last = min(first + _CHUNK, count)
                wanted = self.tokens * last // count - done  # so that the total is exact
                lengths = _lengths(rng, location, last - first, wanted)
                ends = (np.cumsum(lengths) + done) * _TOKEN_BYTES
                for at, values in (
                    (HEADER.size + 4 * first, lengths.astype("<i4")),
                    (pointers_at + 8 * first, (ends - lengths * _TOKEN_BYTES).astype("<i8")),
                    (borders_at + 8 * (first + 1), np.arange(first + 1, last + 1, dtype="<i8")),
                ):
                    file.seek(at)
                    file.write(values.tobytes())
                done += wanted

    def _write_tokens(self, paths: CorpusPaths, rng: np.random.Generator) -> None:
        with paths.bin.open("wb") as file:
            for first in range(0, self.tokens if self.filled else 0, _CHUNK):
                count = min(_CHUNK, self.tokens - first)
                file.write(rng.integers(0, self.vocabulary, count, dtype="<u2").tobytes())
            file.truncate(self.tokens * _TOKEN_BYTES)

    def _info(self) -> CorpusInfo:
        return CorpusInfo(
            documents=self.documents,
            tokens=self.tokens,
            text_bytes=4 * self.tokens,
            dtype="uint16",
            longest=LONGEST,
            special_spellings=0,
            vocab_size=self.vocabulary,
            eos_id=0,
            bos_id=None,
            tokenizer="made up",
            content_hash=hash_json([self.name, self.documents, self.tokens, self.filled]),
        )


def _location(mean: float) -> float:
    """The log-normal's location at which clipped lengths have this mean."""
    assert _SHORTEST < mean < LONGEST, f"{mean} tokens a document"
    normal = np.random.default_rng(0).standard_normal(1 << 18) * _SIGMA
    low, high = 0.0, 12.0
    for _ in range(40):
        middle = (low + high) / 2
        if np.clip(np.exp(normal + middle), _SHORTEST, LONGEST).mean() < mean:
            low = middle
        else:
            high = middle
    return low


def _lengths(
    rng: np.random.Generator, location: float, count: int, total: int
) -> NDArray[np.int64]:
    """`count` lengths with this sum; documents are made longer or shorter by one for the rest."""
    drawn = np.exp(rng.standard_normal(count) * _SIGMA + location)
    lengths = np.clip(drawn, _SHORTEST, LONGEST).astype(np.int64)
    while (missing := total - int(lengths.sum())) != 0:
        room = lengths < LONGEST if missing > 0 else lengths > _SHORTEST
        lengths[np.flatnonzero(room)[: abs(missing)]] += np.sign(missing)
    return lengths
