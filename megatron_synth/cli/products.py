"""A folder that holds the product of one verb: new, unfinished, or done already."""

import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_synth.config import DataError
from megatron_synth.runs import exclusive, get_logger, read_manifest, write_manifest
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

    Returns:
        The counts.

    Raises:
        DataError: The folder holds something else.
        RunError: Another process works in it, or the disk is full.
    """
    out = out.resolve()
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    marker = out.parent / f".{out.name}.unfinished"
    with exclusive(out.parent / f".{out.name}.lock", str(out), patience=0, remove=True):
        if (out / MANIFEST).is_file():
            manifest = read_manifest(out)
            if manifest.key != key:
                raise DataError(
                    "holds another product already: other settings, or an input that has changed",
                    where=out,
                    fix="Give another folder for --out, or remove this one.",
                )
            marker.unlink(missing_ok=True)
            get_logger(__name__).info("%s is done already", out)
            return manifest.counts
        others = sorted(path.name for path in out.iterdir())
        if others and not marker.is_file():
            raise DataError(
                f"holds other files: {', '.join(others[:5])}",
                where=out,
                fix="Give a new or empty folder for --out.",
            )
        with disk_errors(marker):
            marker.touch()
        began = time.monotonic()
        try:
            made = make()
        finally:
            if not any(out.iterdir()):  # what lies there at the next try is not ours
                marker.unlink()
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
        marker.unlink(missing_ok=True)
        return made.counts
