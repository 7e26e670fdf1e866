"""The documentation installed on this machine: docstrings of every Python package, as a corpus.

Real human text with related documents, no download. Files are parsed, never imported, so nothing
of theirs runs. Cost: about 10 MB/s of source a core; a full scientific stack is 30,000 files,
400 MB and 40,000 documents.
"""

import ast
import gc
import inspect
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from megatron_synth.corpus.document import BadRow, Document, check_text
from megatron_synth.corpus.files import shown_path
from megatron_synth.corpus.lines import OnBytes
from megatron_synth.corpus.quarantine import Quarantine

_SITE_FOLDERS = ("site-packages", "dist-packages")
_OWN_PACKAGE = "megatron_synth"
_DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass
class InstalledCounts:
    """What was looked at."""

    files: int = 0
    unparsed: list[str] = field(default_factory=list)
    """Files that this Python cannot parse: other versions' syntax, templates, test data."""


def installed_documentation(
    *,
    min_characters: int = 200,
    roots: list[Path] | None = None,
    quarantine: Quarantine | None = None,
    counts: InstalledCounts | None = None,
    on_bytes: OnBytes | None = None,
) -> Iterator[Document]:
    """Yield every docstring of at least `min_characters`, cleaned of its indentation.

    The id is `package.module:Qualified.name` (`package.module:` for a module's own), the metadata
    hold `package`, the top-level name. The order is that of the sorted paths. This project's own
    package is left out, so that the corpus does not change with it.

    Args:
        min_characters: Shorter docstrings are no documents.
        roots: Folders to walk; default `installed_roots()`.
        quarantine: Takes docstrings that are no valid text; without one they are only skipped.
        counts: Filled while the iterator runs.
        on_bytes: Called with the size of each file.
    """
    counts = counts or InstalledCounts()
    for path, module in list_sources(roots):
        source = _read(path)
        counts.files += 1
        if on_bytes is not None:
            on_bytes(len(source))
        found = _file_docstrings(source, min_characters)
        if found is None:
            counts.unparsed.append(str(path))
            continue
        for name, line, text in found:
            try:
                check_text(text)
            except BadRow as bad:
                if quarantine is not None:
                    quarantine.add(str(path), line, str(bad), text)
                continue
            if quarantine is not None:
                quarantine.good += 1
            package = module.partition(".")[0]
            yield Document(f"{module}:{name}", text, metadata={"package": package})


def installed_roots() -> list[Path]:
    """The standard library and every site-packages folder on `sys.path`."""
    roots = [Path(sysconfig.get_paths()["stdlib"])]
    roots += [Path(entry) for entry in sys.path if Path(entry).name in _SITE_FOLDERS]
    unique: dict[Path, Path] = {}
    for root in roots:
        if root.is_dir():
            unique.setdefault(root.resolve(), root)
    return list(unique.values())


def list_sources(roots: list[Path] | None = None) -> list[tuple[Path, str]]:
    """Python files under the roots with their module names, sorted by path inside each root."""
    found: list[tuple[Path, str]] = []
    for root in installed_roots() if roots is None else roots:
        for folder, inner, files in os.walk(root):
            at_root = Path(folder) == root
            inner[:] = sorted(n for n in inner if not _is_skipped(n, at_root))
            for name in sorted(files):
                if name.endswith(".py") and not (at_root and name == f"{_OWN_PACKAGE}.py"):
                    path = Path(folder, name)
                    found.append((path, _module_name(path.relative_to(root))))
    return found


def source_bytes(roots: list[Path] | None = None) -> int:
    """Bytes of all these files."""
    return sum(_size(path) for path, _ in list_sources(roots))


def _is_skipped(name: str, at_root: bool) -> bool:
    # The standard library of the base Python holds its own site-packages, which may be another
    # environment's; where it is ours it is a root of its own.
    return name == "__pycache__" or (at_root and name in (*_SITE_FOLDERS, _OWN_PACKAGE))


def _module_name(inside: Path) -> str:
    parts = list(inside.with_suffix("").parts)
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return shown_path(".".join(parts))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # a dangling link, no permission: nothing to read there
        return b""


def _file_docstrings(source: bytes, min_characters: int) -> list[tuple[str, int, str]] | None:
    """(qualified name, line, text) of the long docstrings; None where the file does not parse."""
    if b'"""' not in source and b"'''" not in source:
        return []  # saves a tenth of the time: no docstring of any length
    with _without_collector():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # other people's invalid escapes
                tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
        found = [entry for entry in _docstrings(tree) if len(entry[2]) >= min_characters]
        del tree
    return found


def _docstrings(tree: ast.Module) -> Iterator[tuple[str, int, str]]:
    """Yield (qualified name, line, clean text) in the order of the source."""
    stack: list[tuple[str, ast.AST]] = [("", tree)]
    while stack:
        prefix, node = stack.pop()
        inside = prefix
        if isinstance(node, (ast.Module, *_DOCUMENTED)):
            if not isinstance(node, ast.Module):
                inside = f"{prefix}.{node.name}" if prefix else node.name
            text = ast.get_docstring(node, clean=False)
            if text is not None:
                yield inside, node.body[0].lineno, inspect.cleandoc(text).strip()
        for part in ("finalbody", "orelse", "handlers", "body"):
            block = getattr(node, part, None)
            if isinstance(block, list):
                stack += [(inside, child) for child in reversed(block) if hasattr(child, "body")]


@contextmanager
def _without_collector() -> Iterator[None]:
    """Syntax trees have no cycles; looking for some takes longer than parsing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
