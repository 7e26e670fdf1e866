"""The store of products: one folder a step, named by what made it."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_synth.config import RunError
from megatron_synth.runs.atomic import disk_errors, fsync_folder
from megatron_synth.runs.hashing import hash_json
from megatron_synth.runs.locks import exclusive
from megatron_synth.runs.manifest import (
    MANIFEST,
    Manifest,
    Parent,
    read_manifest,
    write_manifest,
)
from megatron_synth.runs.progress import PROGRESS, Progress

_SECONDS = ".seconds"


@dataclass
class StepWork:
    """A step in progress.

    Attributes:
        folder: Where to write. After a kill the next try finds what the last one left here; when
            the step is committed, this folder moves to its final name as a whole.
        inputs: Manifests of the parents, by role.
        progress: Report what is done here.
    """

    folder: Path
    inputs: Mapping[str, Manifest]
    progress: Progress
    started: float = field(default_factory=time.monotonic)


class AlreadyDoneError(RunError):
    """The product was finished by somebody else in the meantime."""


class Store:
    """Products of one run, under `root`: `root/NAME-KEY/`, or `root/NAME-KEY.partial/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def key(
        self, kind: str, version: int, config: Mapping[str, Any], parents: Mapping[str, Manifest]
    ) -> str:
        """The address of a product: equal for equal kind, code version, config and inputs."""
        return hash_json(
            {
                "kind": kind,
                "version": version,
                "config": config,
                "parents": {role: parent.content_hash for role, parent in parents.items()},
            }
        )

    def folder(self, step: str, key: str) -> Path:
        """Where the finished product of `step` lies, or will lie."""
        return self.root / f"{step}-{key[:12]}"

    def find(self, step: str, key: str) -> Manifest | None:
        """The manifest of a finished step, or None."""
        folder = self.folder(step, key)
        return read_manifest(folder) if (folder / MANIFEST).is_file() else None

    def partial(self, step: str, key: str) -> Path:
        """Where an unfinished product lies."""
        folder = self.folder(step, key)
        return folder.with_name(folder.name + ".partial")

    def is_locked(self, step: str, key: str) -> bool:
        """Whether some process works on the step now."""
        path = self._lock(step, key)
        if not path.is_file():
            return False
        with path.open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _lock(self, step: str, key: str) -> Path:
        return self.root / f".{step}-{key[:12]}.lock"

    @contextmanager
    def open(self, step: str, key: str, inputs: Mapping[str, Manifest]) -> Iterator[StepWork]:
        """Work on a step; nobody else can at the same time.

        Raises:
            AlreadyDoneError: Somebody finished it while this process waited for the lock.
            RunError: Another process works on it, or the disk is full.
        """
        folder = self.partial(step, key)
        with disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        with exclusive(self._lock(step, key), f"step {step}"), disk_errors(folder):
            if self.find(step, key) is not None:
                raise AlreadyDoneError("is done already", where=step)
            folder.mkdir(exist_ok=True)
            work = StepWork(folder, inputs, Progress(folder / PROGRESS))
            try:
                yield work
            finally:
                if folder.is_dir():
                    _add_seconds(folder, time.monotonic() - work.started)

    def commit(
        self,
        work: StepWork,
        *,
        step: str,
        kind: str,
        key: str,
        config: dict[str, Any],
        counts: dict[str, Any],
        tokenizer: str | None = None,
    ) -> Manifest:
        """Write the manifest and move the folder to its final name."""
        seconds = _read_seconds(work.folder) + time.monotonic() - work.started
        _remove_leftovers(work.folder)
        final = self.folder(step, key)
        write_manifest(
            work.folder,
            step=step,
            kind=kind,
            key=key,
            config=config,
            counts=counts,
            seconds=seconds,
            parents={
                role: Parent(
                    step=parent.step,
                    folder=os.path.relpath(parent.folder, self.root),
                    content_hash=parent.content_hash,
                )
                for role, parent in work.inputs.items()
            },
            tokenizer=tokenizer,
        )
        assert not (final / MANIFEST).is_file(), "open() found it, and holds the lock"
        if final.exists():
            shutil.rmtree(final)
        work.folder.rename(final)
        fsync_folder(self.root)
        return read_manifest(final)


def _remove_leftovers(folder: Path) -> None:
    """Progress, time and what killed tries left behind: not part of the product."""
    for path in (folder / PROGRESS, folder / _SECONDS, *folder.rglob(".*.tmp")):
        path.unlink(missing_ok=True)


def _read_seconds(folder: Path) -> float:
    path = folder / _SECONDS
    return float(path.read_text()) if path.is_file() else 0.0


def _add_seconds(folder: Path, seconds: float) -> None:
    path = folder / _SECONDS
    total = _read_seconds(folder) + seconds
    temporary = path.with_suffix(".tmp")
    temporary.write_text(f"{total:.3f}")
    temporary.replace(path)
