"""A folder that holds the product of one verb: new, unfinished, or done already."""

import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_synth.config import DataError
from megatron_synth.runs import exclusive, get_logger, read_manifest, shared, write_manifest
from megatron_synth.runs.atomic import disk_errors
from megatron_synth.runs.manifest import MANIFEST


@dataclass(frozen=True)
class Made:
    """What a verb made: the counts, the names of its files, the tokenizer's fingerprint."""

    counts: dict[str, Any]
    files: Collection[str]
    tokenizer: str | None = None


def make_product(
    out: Path,
    *,
    kind: str,
    key: str,
    config: dict[str, Any],
    make: Callable[[], Made],
    patience: float = 0,
) -> dict[str, Any]:
    """Make a product in `out` and write its manifest last; one that is done costs nothing.

    A try that was killed leaves a marker beside the folder: by that, the next one knows that what
    lies in the folder is its own.

    Args:
        out: The folder: absent, empty, finished, or of a try that was killed.
        kind: What the verb does.
        key: Hash of everything that decides what the product is.
        config: Its settings, for the manifest.
        make: Makes it; what else lies in the folder afterwards is removed.
        patience: Seconds to wait for other processes that work in it.

    Returns:
        The counts.

    Raises:
        DataError: The folder holds something else.
        RunError: Another process works in it, or the disk is full.
    """
    out = _folder(out)
    with exclusive(_lock(out), str(out), patience, remove=True):
        done = _claim(out, key)
        if done is not None:
            _marker(out).unlink(missing_ok=True)
            get_logger(__name__).info("%s is done already", out)
            return done
        began = time.monotonic()
        try:
            made = make()
        finally:
            if not any(out.iterdir()):  # what lies there at the next try is not ours
                _marker(out).unlink()
        for path in out.iterdir():
            if path.name not in made.files:  # of a try with other settings
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_manifest(
            out,
            step=kind,
            kind=kind,
            key=key,
            config=config,
            counts=made.counts,
            seconds=time.monotonic() - began,
            tokenizer=made.tokenizer,
        )
        _marker(out).unlink(missing_ok=True)
        return made.counts


@contextmanager
def shared_work(out: Path, key: str) -> Iterator[bool]:
    """Work at a product beside others that do so too; `make_product` then waits for all of them.

    Args:
        out: As for `make_product`.
        key: Hash of everything that decides what the product is.

    Yields:
        Whether there is something to do.

    Raises:
        DataError: The folder holds something else.
        RunError: Another process works in it alone, or the disk is full.
    """
    out = _folder(out)
    with shared(_lock(out), str(out)):
        yield _claim(out, key) is None


def _folder(out: Path) -> Path:
    out = out.resolve()
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    return out


def _lock(out: Path) -> Path:
    return out.parent / f".{out.name}.lock"


def _marker(out: Path) -> Path:
    return out.parent / f".{out.name}.unfinished"


def _claim(out: Path, key: str) -> dict[str, Any] | None:
    """The counts, where the product is done; else the folder is marked as ours."""
    if (out / MANIFEST).is_file():
        manifest = read_manifest(out)
        if manifest.key != key:
            raise DataError(
                "holds another product already: other settings, or an input that has changed",
                where=out,
                fix="Give another folder for --out, or remove this one.",
            )
        return manifest.counts
    marker = _marker(out)
    others = sorted(path.name for path in out.iterdir())
    if others and not marker.is_file():
        raise DataError(
            f"holds other files: {', '.join(others[:5])}",
            where=out,
            fix="Give a new or empty folder for --out.",
        )
    with disk_errors(marker):
        marker.touch()
    return None
