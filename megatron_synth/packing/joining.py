"""Join packed parts, in order, into the files that people get."""

import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from megatron_synth.corpus.files import row_stem
from megatron_synth.packing.config import PackConfig
from megatron_synth.packing.indexed import IndexedWriter, token_dtype
from megatron_synth.packing.info import CorpusInfo, CorpusPaths, info_to_json
from megatron_synth.packing.layout import key_stem
from megatron_synth.packing.parts import PartFiles, PartRecord
from megatron_synth.packing.provenance import ProvenanceWriter
from megatron_synth.packing.reader import IndexedReader
from megatron_synth.runs import fsync_folder, hash_file, hash_json, write_json
from megatron_synth.runs.atomic import disk_errors
from megatron_synth.tokens import Tokenizer


@dataclass(frozen=True)
class Dataset:
    """What comes out of consecutive parts: a `.bin/.idx` for each key.

    Attributes:
        prefix: Its name, without the key.
        parts: Number of its parts.
    """

    prefix: Path
    parts: int


class Joining:
    """Appends parts in order as they become whole, to one dataset after another.

    Everything is written under temporary names; `finish` names the files, the info of each
    dataset last.

    Attributes:
        parts: Number of parts that are joined.
    """

    def __init__(
        self, datasets: Sequence[Dataset], tokenizer: Tokenizer, config: PackConfig
    ) -> None:
        self.parts = 0
        self._waiting = list(datasets)
        self._tokenizer = tokenizer
        self._config = config
        self._open: _Joiner | None = None
        self._closed: list[_Joiner] = []
        self._lines: Counter[Path] = Counter()

    def append(self, files: PartFiles, record: PartRecord, source: Path) -> int:
        """Add the next part, made from `source`; gives the lines of `source` before the part."""
        if self._open is None:
            self._open = _Joiner(self._waiting.pop(0), self._tokenizer, self._config)
        before = self._lines[source]
        self._open.append(files, record, row_stem(source), before)
        self._lines[source] += record.lines
        self.parts += 1
        if self._open.is_full:
            self._open.close()
            self._closed.append(self._open)
            self._open = None
        return before

    def finish(self) -> dict[str, CorpusInfo]:
        """Name all files; gives the infos by name of dataset."""
        assert self._open is None, "a part is missing"
        assert not self._waiting, "a part is missing"
        infos = {name: info for joiner in self._closed for name, info in joiner.name_files()}
        self._closed = []
        return infos

    def __enter__(self) -> "Joining":
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as all_of_them:
            for joiner in (*self._closed, *([self._open] if self._open else [])):
                all_of_them.callback(joiner.discard)  # it has no name yet: there was an error


class _Joiner:
    """One dataset."""

    def __init__(self, dataset: Dataset, tokenizer: Tokenizer, config: PackConfig) -> None:
        self._dataset = dataset
        self._tokenizer = tokenizer
        self._config = config
        stems = [key_stem(dataset.prefix, key) for key in config.keys]
        self._final = [CorpusPaths(stem) for stem in stems]
        self._temporary = [paths.temporary for paths in self._final]
        self._records: list[PartRecord] = []
        dtype = token_dtype(tokenizer.vocab_size)
        with ExitStack() as stack:
            self._writers = [
                stack.enter_context(IndexedWriter(paths.bin, paths.idx, dtype))
                for paths in self._temporary
            ]
            table = ProvenanceWriter(self._temporary[0].provenance) if config.provenance else None
            self._table = stack.enter_context(table) if table else None
            self._files = stack.pop_all()

    @property
    def is_full(self) -> bool:
        """Whether all parts are there."""
        return len(self._records) == self._dataset.parts

    def append(self, files: PartFiles, record: PartRecord, stem: str, first_line: int) -> None:
        """Add the next part; rows without an id are named `STEM:LINE`."""
        for k, writer in enumerate(self._writers):
            part = IndexedReader(files.stem(k), check=False)
            counts = np.diff(part.borders)
            single = bool((counts == 1).all())
            writer.append(files.bin(k), part.lengths, None if single else counts.tolist())
        if self._table is not None:
            with files.provenance.open("rb") as lines:
                for line in lines:
                    rows, columns = msgspec.json.decode(line)
                    ids = columns["id"] or [None] * rows
                    for i, number in enumerate(columns["line"] or ()):
                        if number is not None:
                            ids[i] = f"{stem}:{first_line + number}"
                    self._table.add(ids, columns["source_id"], columns["method"])
        self._records.append(record)

    def close(self) -> None:
        """Write what is left, under the temporary names."""
        with self._files:
            for writer in self._writers:
                assert self._table is None or self._table.rows == writer.documents
                writer.finish()
        if self._table is not None:
            for other in self._temporary[1:]:
                with disk_errors(other.provenance):
                    shutil.copyfile(self._temporary[0].provenance, other.provenance)

    def discard(self) -> None:
        """Remove what was written."""
        try:
            self._files.close()
        finally:
            for paths in self._temporary:
                for path in (paths.bin, paths.idx, paths.provenance):
                    path.unlink(missing_ok=True)

    def name_files(self) -> list[tuple[str, CorpusInfo]]:
        """Give the files their names, the infos last."""
        infos = [self._info(k) for k in range(len(self._writers))]
        for temporary, final in zip(self._temporary, self._final, strict=True):
            final.name_from(temporary, provenance=self._config.provenance)
        fsync_folder(self._dataset.prefix.parent)
        for final, info in zip(self._final, infos, strict=True):
            write_json(final.info, info_to_json(info))
        return [(f.stem.name, info) for f, info in zip(self._final, infos, strict=True)]

    def _info(self, k: int) -> CorpusInfo:
        writer, tokenizer, config = self._writers[k], self._tokenizer, self._config
        parts = [record.keys[k] for record in self._records]
        return CorpusInfo(
            documents=writer.documents,
            tokens=writer.tokens,
            text_bytes=sum(part.text_bytes for part in parts),
            dtype=writer.dtype.name,
            longest=writer.longest,
            special_spellings=sum(part.special_spellings for part in parts),
            empty_documents=sum(part.empty_documents for part in parts),
            vocab_size=tokenizer.vocab_size,
            eos_id=tokenizer.eos_id,
            bos_id=tokenizer.bos_id if config.beginning_of_text else None,
            tokenizer=tokenizer.fingerprint,
            content_hash=hash_json([writer.bin_hash, hash_file(self._temporary[k].idx)]),
        )
