"""What is in a corpus, and which of its rows are no documents: `corpus stats`, `corpus check`.

Both read the input once, in a stream, and change nothing. Memory: a block of documents
(`document_blocks`) and, for stats, about 140 bytes a document (lengths and hashes), with
near-duplicates what `NearDuplicates` takes on top. Time: about 40 MB/s; with a tokenizer or
near-duplicates what those take.
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import xxhash
from pydantic import BaseModel, ConfigDict

from megatron_synth.config import DataError
from megatron_synth.corpus.blocks import document_blocks
from megatron_synth.corpus.files import refuse_inputs, shown_path
from megatron_synth.corpus.lengths import Lengths, describe_lengths
from megatron_synth.corpus.near_duplicates import NearDuplicates, NearDuplicatesConfig
from megatron_synth.corpus.quarantine import Quarantine
from megatron_synth.corpus.scripts import count_scripts
from megatron_synth.corpus.sources import read_source, source_files
from megatron_synth.runs import Progress, atomic_write
from megatron_synth.runs.atomic import disk_errors

if TYPE_CHECKING:
    from megatron_synth.tokens import Tokenizer

_PLACES = 5


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BadRows(_Record):
    """Rows that are no documents, of one kind."""

    reason: str
    rows: int
    first: tuple[str, ...]
    """The first five places, `FILE:LINE`."""


class CorpusCheck(_Record):
    """The verdict on every row of a corpus."""

    rows: int
    documents: int
    bad: int
    bad_share: float
    limit: float
    passed: bool
    bad_rows: tuple[BadRows, ...]


class CorpusStats(_Record):
    """What is in a corpus."""

    rows: int
    documents: int
    bad: int
    bad_rows: tuple[BadRows, ...]
    characters: Lengths
    bytes: Lengths
    """UTF-8."""
    tokens: Lengths | None
    """With a tokenizer; without end-of-document tokens."""
    duplicates: int
    """Documents whose text occurred before, exactly."""
    near_duplicates: int | None
    """Of the others, those that nearly repeat an earlier one; None where not asked for."""
    scripts: dict[str, float]
    """Share of letters by script, `LATIN`, `CYRILLIC`, `CJK`, …: which languages can be there."""


class _Listed(Quarantine):
    """A quarantine that remembers the first places of each reason."""

    def __init__(self, handle: IO[str] | None = None) -> None:
        super().__init__(handle=handle)
        self.places: dict[str, list[str]] = {}

    def add(self, file: str, line: int, reason: str, row: bytes | str = b"") -> None:
        super().add(file, line, reason, row)
        places = self.places.setdefault(reason, [])
        if len(places) < _PLACES:
            places.append(f"{shown_path(file)}:{line}")

    def bad_rows(self) -> tuple[BadRows, ...]:
        return tuple(
            BadRows(reason=reason, rows=rows, first=tuple(self.places[reason]))
            for reason, rows in self.reasons.most_common()
        )


def check_corpus(
    source: str,
    *,
    limit: float = 0.01,
    list_file: Path | None = None,
    text_column: str = "text",
    id_column: str = "id",
    progress: Progress | None = None,
) -> CorpusCheck:
    """Read every row and say which are documents.

    Args:
        source: What `read_documents` takes, or `hf://…`.
        limit: Share of bad rows, 0 to 1, above which the corpus does not pass.
        list_file: JSONL file for every bad row (`file`, `line`, `reason`, `start`), whole or not
            there.
        text_column: Key of the text.
        id_column: Key of the id.
        progress: Told how much was read.

    Raises:
        DataError: Nothing to read, no rows, or a list that would replace the input.
        RunError: The list cannot be written.
    """
    with _opened(list_file, source) as handle, _Listed(handle) as rows:
        for _ in read_source(
            source, rows, progress or Progress(), text_column=text_column, id_column=id_column
        ):
            pass
    total = rows.good + rows.bad
    if not total:
        raise DataError("there are no rows", where=source, fix="Check the file.")
    return CorpusCheck(
        rows=total,
        documents=rows.good,
        bad=rows.bad,
        bad_share=rows.bad / total,
        limit=limit,
        passed=rows.bad <= limit * total,
        bad_rows=rows.bad_rows(),
    )


def corpus_stats(
    source: str,
    *,
    tokenizer: "Tokenizer | None" = None,
    near_duplicates: NearDuplicatesConfig | None = None,
    text_column: str = "text",
    id_column: str = "id",
    progress: Progress | None = None,
) -> CorpusStats:
    """Count what is in a corpus; bad rows are counted as well, and fail nothing.

    Args:
        source: What `read_documents` takes, or `hf://…`.
        tokenizer: Counts tokens; None counts none.
        near_duplicates: How near-duplicates are found; None does not look for them.
        text_column: Key of the text.
        id_column: Key of the id.
        progress: Told how much was read.

    Raises:
        DataError: Nothing to read.
    """
    characters, sizes, tokens = array("q"), array("q"), array("q")
    seen: set[bytes] = set()
    near = NearDuplicates(near_duplicates) if near_duplicates else None
    duplicates = nearly = 0
    scripts: Counter[str] = Counter()
    rows = _Listed()
    with rows:
        documents = read_source(
            source, rows, progress or Progress(), text_column=text_column, id_column=id_column
        )
        for block in document_blocks(documents):
            texts = [document.text for document in block]
            if tokenizer is not None:
                tokens.extend(len(ids) for ids in tokenizer.encode_batch(texts))
            new = []
            for text in texts:
                encoded = text.encode()
                characters.append(len(text))
                sizes.append(len(encoded))
                scripts.update(count_scripts(text))
                digest = xxhash.xxh3_128_digest(encoded)
                if digest in seen:
                    duplicates += 1
                else:
                    seen.add(digest)
                    new.append(text)
            for signature in near.signatures(new) if near is not None else ():
                if near is not None and near.find(signature) is not None:
                    nearly += 1
                elif near is not None:
                    near.add("", signature)
    letters = scripts.total()
    return CorpusStats(
        rows=rows.good + rows.bad,
        documents=rows.good,
        bad=rows.bad,
        bad_rows=rows.bad_rows(),
        characters=describe_lengths(characters),
        bytes=describe_lengths(sizes),
        tokens=describe_lengths(tokens) if tokenizer is not None else None,
        duplicates=duplicates,
        near_duplicates=nearly if near is not None else None,
        scripts={name: count / letters for name, count in scripts.most_common()},
    )


@contextmanager
def _opened(list_file: Path | None, source: str) -> Iterator[IO[str] | None]:
    if list_file is None:
        yield None
        return
    if list_file.is_dir():
        raise DataError(
            "is a folder, where the list of bad rows must be a file",
            where=shown_path(list_file),
            fix="Give the name of a new file.",
        )
    refuse_inputs(list_file, source_files(source))
    with disk_errors(list_file):
        list_file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(list_file) as handle:
        yield handle
