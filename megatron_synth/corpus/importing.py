"""Import a corpus: read from anywhere, check, normalise, filter, write one file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from megatron_synth.config import Config, Count, DataError
from megatron_synth.corpus.decontamination import DecontaminateConfig
from megatron_synth.corpus.document import Document
from megatron_synth.corpus.drops import record_list
from megatron_synth.corpus.files import DOCUMENTS, SIDE_LISTS, list_all, refuse_inputs
from megatron_synth.corpus.filtering import Filters
from megatron_synth.corpus.installed import InstalledCounts, installed_documentation, source_bytes
from megatron_synth.corpus.near_duplicates import NearDuplicatesConfig
from megatron_synth.corpus.normalise import Step
from megatron_synth.corpus.quarantine import Quarantine
from megatron_synth.corpus.sources import megabytes, read_source, source_files
from megatron_synth.corpus.writing import document_writer
from megatron_synth.runs import Progress, get_logger

QUARANTINE = "quarantine.jsonl"
DROPPED = "dropped.jsonl"
CONTAMINATED = "contaminated.jsonl"
INSTALLED = "installed"

_log = get_logger(__name__)


class ImportConfig(Config):
    """Where the corpus comes from and what is done to its texts."""

    input: str = INSTALLED
    """`installed` (the documentation of this machine's Python packages), a file, folder or glob
    of JSONL (plain, .gz, .zst) or Parquet, or `hf://OWNER/NAME[:CONFIG][@SPLIT]`."""
    text_column: str = "text"
    """Key of the text in each row."""
    id_column: str = "id"
    """Key of the id; rows without one are named `FILE:LINE`."""
    max_documents: Annotated[Count, Field(ge=1)] | None = None
    """Stop after this many documents were kept."""
    normalise: tuple[Step, ...] = ("unicode", "long_urls", "line_breaks")
    """Steps, in order, counted by name."""
    min_characters: int = Field(default=200, ge=1)
    """Shorter texts are dropped and counted."""
    max_characters: Annotated[int, Field(ge=1)] | None = None
    """Longer texts are dropped and counted."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer that `min_tokens` and `max_tokens` count with."""
    min_tokens: Annotated[int, Field(ge=1)] | None = None
    """Texts of fewer tokens are dropped and counted."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Texts of more tokens are dropped and counted."""
    keep_duplicates: bool = False
    """Keep texts that occurred before; else they are dropped and counted."""
    near_duplicates: NearDuplicatesConfig | None = None
    """Drop near-duplicates of texts that were kept (MinHash-LSH); off unless set."""
    decontaminate: DecontaminateConfig | None = None
    """Drop, or cut, what overlaps with benchmark queries; off unless set."""
    format: Literal["jsonl", "parquet"] = "jsonl"
    """What the corpus is written as: `documents.jsonl.zst` or `documents.parquet`."""
    quarantine_limit: float = Field(default=0.01, ge=0, le=1)
    """Share of rows that may be no documents before the import fails."""

    @model_validator(mode="after")
    def _bounds_fit(self) -> "ImportConfig":
        if self.keep_duplicates and self.near_duplicates is not None:
            raise ValueError(
                "keep_duplicates is true, but near_duplicates would drop exact duplicates as well: "
                "set one of them"
            )
        if self.tokenizer is None and (self.min_tokens, self.max_tokens) != (None, None):
            raise ValueError("min_tokens and max_tokens need a tokenizer: set `tokenizer`")
        for unit in ("characters", "tokens"):
            low, high = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{unit} is {low:,}, over max_{unit}, {high:,}")
        return self


def products(config: ImportConfig) -> list[str]:
    """Names of the files that an import writes."""
    lists = SIDE_LISTS if config.decontaminate else SIDE_LISTS - {CONTAMINATED}
    return sorted((DOCUMENTS[config.format], *lists))


def import_corpus(
    config: ImportConfig, out: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the corpus into `out` in one pass over the input; give the counts.

    Files: `documents.jsonl.zst` or `documents.parquet`; `quarantine.jsonl`, the bad rows;
    `dropped.jsonl`, the documents that were left out, with `id`, `reason` and what they repeat;
    with decontamination also `contaminated.jsonl`, the queries that were met.

    Equal input gives equal bytes. A killed try leaves no file under its final name but the
    quarantine, and the next one starts over. Memory and time: see `Filters` and docs/corpus.md.

    Returns:
        Counts: `rows`, `quarantined`, the drops by reason (`filtering.REASONS`), `renamed` (ids
        that occurred before), `changed` (by normalisation step), `documents`, `characters`,
        `bytes`; with a tokenizer `tokens`; with decontamination `benchmarks`, `contaminated_by`,
        `cut`. Rows are quarantined, dropped and documents together, always.

    Raises:
        DataError: Nothing to read, too many bad rows, no document left, or `out` holds a file
            that is read.
        RunError: The disk is full.
    """
    progress = progress or Progress()
    queries = config.decontaminate.queries if config.decontaminate else ()
    inputs = [] if config.input == INSTALLED else source_files(config.input)
    refuse_inputs(out, [*inputs, *list_all(queries)])
    out.mkdir(parents=True, exist_ok=True)
    installed = InstalledCounts()
    met = out / CONTAMINATED if config.decontaminate else None
    with Quarantine(out / QUARANTINE, config.quarantine_limit) as quarantine:
        with (
            document_writer(out / DOCUMENTS[config.format]) as sink,
            record_list(out / DROPPED) as dropped,
            record_list(met) as contaminated,
        ):
            filters = Filters(config, dropped, contaminated)
            for kept in filters.keep(_read(config, quarantine, installed, progress)):
                sink.write(kept)
            quarantine.check()
            if not sink.count:
                raise DataError(
                    f"no document is left of {quarantine.good + quarantine.bad:,} rows"
                    f"{_where_they_went(filters, quarantine)}",
                    where=config.input,
                    fix="Check the file, min_characters and text_column.",
                )
        counts = {
            "rows": quarantine.good + quarantine.bad,
            "quarantined": quarantine.bad,
            "quarantine_reasons": dict(quarantine.reasons),
            **filters.counts(),
            "documents": sink.count,
        }
    if config.input == INSTALLED:
        counts["source_files"] = installed.files
        counts["unparsed_files"] = len(installed.unparsed)
    _log.info("imported %s: %s", config.input, counts)
    return counts


def _where_they_went(filters: Filters, quarantine: Quarantine) -> str:
    bad = f"{quarantine.bad:,} quarantined" if quarantine.bad else ""
    words = ", ".join(part for part in (filters.dropped(), bad) if part)
    return f" ({words})" if words else ""


def _read(
    config: ImportConfig, quarantine: Quarantine, installed: InstalledCounts, progress: Progress
) -> Iterator[Document]:
    if config.input == INSTALLED:
        progress.phase("reading installed documentation", source_bytes() / 1e6, "MB")
        yield from installed_documentation(
            min_characters=config.min_characters,
            quarantine=quarantine,
            counts=installed,
            on_bytes=megabytes(progress),
        )
    else:
        yield from read_source(
            config.input,
            quarantine,
            progress,
            text_column=config.text_column,
            id_column=config.id_column,
        )
