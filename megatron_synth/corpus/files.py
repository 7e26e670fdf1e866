"""Which files a corpus consists of: one file, a folder, a glob."""

import glob
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from megatron_synth.config import DataError

JSON_SUFFIXES = tuple(
    base + packed for base in (".jsonl", ".json", ".ndjson") for packed in ("", ".gz", ".zst")
)
PARQUET_SUFFIXES = (".parquet",)
SUPPORTED = JSON_SUFFIXES + PARQUET_SUFFIXES

DOCUMENTS = {"jsonl": "documents.jsonl.zst", "parquet": "documents.parquet"}
"""The documents of an imported corpus, by the format that it was written in."""
SIDE_LISTS = frozenset(("quarantine.jsonl", "dropped.jsonl", "contaminated.jsonl", "manifest.json"))
"""What an import writes beside them."""


def documents_of(folder: Path) -> Path:
    """The documents in a folder that an import or a synthesis has made.

    Raises:
        DataError: There are none.
    """
    for name in DOCUMENTS.values():
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"holds none of {', '.join(DOCUMENTS.values())}", where=folder)


def is_parquet(path: Path) -> bool:
    """Whether the name says Parquet."""
    return path.name.endswith(PARQUET_SUFFIXES)


def list_files(source: str | Path) -> list[Path]:
    """Files of a corpus, sorted by path.

    Args:
        source: A file; a folder, of which every supported file at any depth counts (names that
            begin with a dot or underscore do not); or a glob such as `data/**/*.jsonl.gz`. What
            an import or a packing wrote beside its product counts only where it is named as a file.

    Raises:
        DataError: Nothing is there, or nothing there can be read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if not path.name.endswith(SUPPORTED):
            raise DataError(
                "not a kind of file that can be read", where=path, fix=f"Kinds: {_kinds()}."
            )
        return [path]
    if path.is_dir():
        inside = [p for p in path.rglob("*") if p.is_file() and _counts(p.relative_to(path))]
        found = sorted(p for p in inside if not _is_side_list(p))
        if not found:
            raise DataError("no corpus file in this folder", where=path, fix=f"Kinds: {_kinds()}.")
        return found
    if glob.has_magic(str(source)):
        matched = (Path(p) for p in glob.glob(str(path), recursive=True))  # noqa: PTH207
        inside = [p for p in matched if p.is_file() and p.name.endswith(SUPPORTED)]
        found = sorted(p for p in inside if not _is_side_list(p))
        if not found:
            raise DataError("no corpus file matches", where=str(source), fix=f"Kinds: {_kinds()}.")
        return found
    raise DataError("no such file or folder", where=path, fix="Check the path.")


def list_all(sources: Sequence[str | Path]) -> list[Path]:
    """Files of several sources in order, each once however many sources name it."""
    found: dict[Path, Path] = {}
    for path in (path for source in sources for path in list_files(source)):
        found.setdefault(path.resolve(), path)
    return list(found.values())


def refuse_inputs(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that would replace what is read.

    Args:
        out: File or folder that is to be written.
        inputs: Files that are read.

    Raises:
        DataError: `out` is one of the inputs, or a folder that holds one.
    """
    there = out.resolve()
    for path in inputs:
        if path.resolve().is_relative_to(there) or (out.is_file() and path.samefile(out)):
            raise DataError(
                "is read, and would be replaced by what is to be written",
                where=shown_path(path),
                fix=f"Write somewhere else than to {shown_path(out)}.",
            )


def shown_path(path: str | Path) -> str:
    r"""A path as valid Unicode: bytes of its name that are no UTF-8 become `\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def row_stem(path: Path) -> str:
    """What names the rows of a file that bring no id, before `:LINE`; valid Unicode."""
    return shown_path(path.name).split(".")[0]


def _counts(inside: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in inside.parts)
    return not hidden and inside.name.endswith(SUPPORTED)


def _is_side_list(path: Path) -> bool:
    """Whether an import or a packing wrote the file beside its product."""
    made = (path.with_name(name) for name in DOCUMENTS.values())
    if path.name in SIDE_LISTS and any(documents.is_file() for documents in made):
        return True
    if path.name.endswith(".quarantine.jsonl"):
        return True
    dataset = re.fullmatch(r"(.+_document)\.(json|provenance\.parquet)", path.name)
    return dataset is not None and path.with_name(f"{dataset[1]}.bin").is_file()


def _kinds() -> str:
    return ", ".join(SUPPORTED)
