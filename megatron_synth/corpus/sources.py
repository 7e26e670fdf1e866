"""Documents from files or the hub, with progress."""

from collections.abc import Callable, Iterator
from pathlib import Path

from megatron_synth.corpus.document import Document
from megatron_synth.corpus.files import list_files
from megatron_synth.corpus.hub import SCHEME, read_hub
from megatron_synth.corpus.quarantine import Quarantine
from megatron_synth.corpus.reading import read_documents, total_bytes
from megatron_synth.runs import Progress


def read_source(
    source: str,
    quarantine: Quarantine,
    progress: Progress,
    *,
    text_column: str = "text",
    id_column: str = "id",
) -> Iterator[Document]:
    """Yield the documents of what `list_files` takes, or of `hf://…`; see `read_documents`."""
    if source.startswith(SCHEME):
        rows = read_hub(source, quarantine, text_column=text_column, id_column=id_column)
        yield from progress.track(rows, "streaming from the hub", unit="rows")
        return
    progress.phase("reading", total_bytes(source) / 1e6, "MB")
    yield from read_documents(
        source,
        quarantine=quarantine,
        text_column=text_column,
        id_column=id_column,
        on_bytes=megabytes(progress),
    )


def source_files(source: str) -> list[Path]:
    """The files that `read_source` reads; of the hub, none."""
    return [] if source.startswith(SCHEME) else list_files(source)


def megabytes(progress: Progress) -> Callable[[int], None]:
    """Reports bytes, as they are read, as the megabytes done of a phase."""
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        progress.update(done / 1e6)

    return on_bytes
