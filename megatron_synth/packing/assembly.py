"""One corpus on its way: its parts, which of them are done, and their joining."""

import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from megatron_synth.config import DataError, format_count
from megatron_synth.corpus.columns import Part, parts_of
from megatron_synth.corpus.files import is_parquet, shown_path
from megatron_synth.corpus.lines import is_compressed
from megatron_synth.corpus.quarantine import Quarantine
from megatron_synth.packing.config import PackConfig
from megatron_synth.packing.info import CorpusInfo
from megatron_synth.packing.joining import Dataset, Joining
from megatron_synth.packing.layout import key_stem
from megatron_synth.packing.parts import PartFiles, PartPacker, PartRecord
from megatron_synth.packing.pool import Pool
from megatron_synth.packing.worker import Job
from megatron_synth.runs import Progress, get_logger, hash_json
from megatron_synth.runs.atomic import disk_errors, write_json
from megatron_synth.tokens import Tokenizer
from megatron_synth.tokens.fast import FastEncoder

_VERSION = 4
_PLAN = "plan.json"
_MANY_BAD = 10_000
"""Under so many bad rows the whole list of them is worth more than the time to the end."""
_SHORTEST_ROW = 8
"""Bytes that a row with a text takes at least, its line break counted: {"":""}."""

_log = get_logger(__name__)


@dataclass(frozen=True)
class Packed:
    """What `pack` made.

    Attributes:
        infos: By name of dataset: `PREFIX_KEY_document`.
        rows: Good and bad rows.
        quarantined: Rows that are no documents, set aside.
        rejected: Rows that spell special tokens, set aside because the config says so.
        encoder: `gigatoken` or `tokenizer`: what made the ids.
        seconds: From the first text read to the last file named; before that, processes start
            and the encoder is proven.
    """

    infos: dict[str, CorpusInfo]
    rows: int
    quarantined: int
    rejected: int
    encoder: str
    seconds: float = field(compare=False)

    @property
    def info(self) -> CorpusInfo:
        """Of the first key's (first) dataset."""
        return next(iter(self.infos.values()))


class Packing:
    """One corpus on its way: the plan, the parts that are done, the joining."""

    def __init__(
        self,
        documents: str | Path,
        tokenizer: Tokenizer,
        prefix: Path,
        config: PackConfig,
        work: Path,
        part_bytes: int,
    ) -> None:
        self.parts = parts_of(documents, part_bytes)
        self._documents = documents
        self._tokenizer = tokenizer
        self._prefix = prefix
        self._config = config
        self._work = work
        self._records = self._open_work()
        self._first_lines: list[int] = []
        self._bad = 0  # rows of the parts that are joined
        self._most_good_rows = _most_rows(self.parts)

    def start(self, workers: int) -> Pool | None:
        """The processes; None where this one alone can do what is left to do."""
        useful = min(workers, len(self.parts) - len(self._records))
        if useful <= 1:
            return None
        config = self._config.model_dump_json()
        return Pool(Job(self._tokenizer.source, config, str(self._work)), useful)

    def run(self, progress: Progress, pool: Pool | None, fast: FastEncoder | None) -> Packed:
        """Pack what is not packed yet, join everything, check it, name it."""
        if fast is None:  # it was not proven, or it is not wanted: what it made is made again
            self._records = {n: r for n, r in self._records.items() if not r.fast}
        shown = _Shown(progress, self.parts, self._records)
        with Joining(self._datasets(), self._tokenizer, self._config) as joining:
            self._join(joining)
            for number in self._pack_rest(pool, fast, shown):
                record = PartFiles(self._work, number).read()
                assert record is not None, "it was said to be whole"
                self._records[number] = record
                self._join(joining)
                if self._is_hopeless():
                    break  # the bad rows are too many already, whatever comes
            good, bad, rejected = self._set_aside()
            if not good:
                why = f"{bad:,} rows are none, {rejected:,} spell special tokens"
                raise DataError(
                    "no documents to pack",
                    where=str(self._documents),
                    fix=f"{why[0].upper()}{why[1:]}." if bad + rejected else "It is empty.",
                )
            infos = joining.finish()
        for name, info in infos.items():
            counts = f"{info.documents:,} documents, {info.tokens:,} tokens"
            _log.info("packed %s: %s", name, counts)
        encoder = "gigatoken" if fast else "tokenizer"
        return Packed(infos, good + bad + rejected, bad, rejected, encoder, shown.seconds)

    def _join(self, joining: Joining) -> None:
        """Join the parts whose turn it is."""
        while (number := joining.parts) in self._records:
            record = self._records[number]
            files = PartFiles(self._work, number)
            line = joining.append(files, record, self.parts[number].path)
            self._first_lines.append(line)
            self._bad += len(record.bad)

    def _is_hopeless(self) -> bool:
        """Whether the rest, all good, could not bring the share of bad rows under the limit."""
        most_rows = self._most_good_rows + self._bad
        return self._bad >= _MANY_BAD and self._bad > self._config.quarantine_limit * most_rows

    def _set_aside(self) -> tuple[int, int, int]:
        """List the rows that are not packed; gives good, bad and rejected rows."""
        path = self._prefix.with_name(f"{self._prefix.name}.quarantine.jsonl")
        rejected = sum(len(record.rejected) for record in self._records.values())
        bad = sum(len(record.bad) for record in self._records.values())
        with Quarantine(path if bad + rejected else None, self._config.quarantine_limit) as found:
            for number, before in enumerate(self._first_lines):
                part, record = self.parts[number], self._records[number]
                found.good += record.good
                for row in record.bad:
                    found.add(shown_path(part.path), before + row.line, row.reason, row.start)
                    if "from here on" in row.reason:
                        _log.warning("%s: %s", shown_path(part.path), row.reason)
                for row in record.rejected:
                    found.note(shown_path(part.path), before + row.line, row.reason, row.start)
            found.check()
        if not bad + rejected:
            path.unlink(missing_ok=True)  # of an older try
        return found.good, bad, rejected

    def _open_work(self) -> dict[int, PartRecord]:
        """Make the work folder, or find what a killed try has left whole in it."""
        plan = hash_json(
            {
                "version": _VERSION,
                "parts": [
                    (shown_path(p.path), p.start, p.stop, p.size, p.path.stat().st_mtime_ns)
                    for p in self.parts
                ],
                "tokenizer": self._tokenizer.fingerprint,
                "config": self._config.model_dump(
                    mode="json", exclude={"quarantine_limit", "output_mb"}
                ),
            }
        )
        path = self._work / _PLAN
        names = [stem.name for dataset in self._datasets() for stem in self._stems(dataset)]
        known, old_names = _read_plan(path)
        for name in {*old_names} - {*names}:  # a killed try with other settings left them
            for left in self._prefix.parent.glob(f".{name}.tmp.*"):
                left.unlink()
        if known != plan:
            shutil.rmtree(self._work, ignore_errors=True)
            with disk_errors(self._work):
                self._work.mkdir()
        write_json(path, {"plan": plan, "datasets": names})
        if known != plan:
            return {}
        for left in self._work.glob(".part-*.tmp.*"):  # of a try that was killed
            left.unlink()
        found = {n: PartFiles(self._work, n).read_checked() for n in range(len(self.parts))}
        records = {n: record for n, record in found.items() if record is not None}
        if records:
            _log.info("going on: %d of %d parts are packed", len(records), len(self.parts))
        return records

    def _pack_rest(
        self, pool: Pool | None, fast: FastEncoder | None, shown: "_Shown"
    ) -> Iterator[int]:
        rest = {n: part for n, part in enumerate(self.parts) if n not in self._records}
        if pool is not None:
            yield from pool.pack(rest, fast is not None, shown.read)
            return
        packer = PartPacker(self._tokenizer, fast, self._config, self._work)
        for number, part in rest.items():
            packer.pack(number, part, shown.read)
            yield number

    def _stems(self, dataset: Dataset) -> list[Path]:
        return [key_stem(dataset.prefix, key) for key in self._config.keys]

    def _datasets(self) -> list[Dataset]:
        """What comes out: one dataset, or one for every `output_mb` of input."""
        limit = self._config.output_mb
        if limit is None:
            return [Dataset(self._prefix, len(self.parts))]
        sizes = [0]
        counts = [0]
        for part in self.parts:
            if sizes[-1] >= limit * 1_000_000:
                sizes.append(0)
                counts.append(0)
            sizes[-1] += part.size
            counts[-1] += 1
        name = self._prefix.name
        return [
            Dataset(self._prefix.with_name(f"{name}-{i:05d}"), count)
            for i, count in enumerate(counts)
        ]


class _Shown:
    """Shows how much of the input is read, and how fast."""

    def __init__(
        self, progress: Progress, parts: list[Part], records: dict[int, PartRecord]
    ) -> None:
        total = sum(part.size for part in parts)
        self._bytes = sum(parts[number].size for number in records)
        self._tokens = 0
        self._progress = progress
        self._started: float | None = None
        progress.phase("tokenizing and packing", total / 1e6, "MB", done=self._bytes / 1e6)

    def read(self, size: int, tokens: int) -> None:
        """So much more was read and written."""
        self._started = self._started or time.monotonic()
        self._bytes += size
        self._tokens += tokens
        rate = self._tokens / max(1e-9, self.seconds)
        self._progress.update(self._bytes / 1e6, f"{format_count(rate)} tokens/s")

    @property
    def seconds(self) -> float:
        """Since the first text was read."""
        return 0.0 if self._started is None else time.monotonic() - self._started


def _most_rows(parts: list[Part]) -> float:
    """The most rows with a text that the files can hold; no number bounds compressed ones."""
    if any(is_compressed(part.path) or is_parquet(part.path) for part in parts):
        return math.inf
    return sum(part.size for part in parts) / _SHORTEST_ROW


def _read_plan(path: Path) -> tuple[str | None, list[str]]:
    """The plan of the last try, and the names of the datasets that it was to make."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["plan"], content["datasets"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # absent, or of a power cut
        return None, []
