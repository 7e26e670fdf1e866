"""Hashes of large files that are seldom written, such as a model's weights, remembered by user.

A hash is believed while the file's size, times and inode are what they were. One small file a
hashed path lies in `megatron_synth/hashes` in the user's cache folder (`$XDG_CACHE_HOME`, by
default `~/.cache`), or in what MEGATRON_SYNTH_HASHES names. What is lost is computed again.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from megatron_synth.config import RunError
from megatron_synth.runs.atomic import write_json
from megatron_synth.runs.hashing import hash_file, hash_json
from megatron_synth.runs.logs import get_logger

_LOG = get_logger(__name__)

_VARIABLE = "MEGATRON_SYNTH_HASHES"
_SMALL = 1 << 20
"""Bytes below which hashing costs no more than looking the hash up."""
_SETTLED_NS = 2_000_000_000
"""A file that changed so shortly ago may change again within one tick of its clock."""


def hash_file_once(path: Path) -> str:
    """`hash_file`, read from the cache where the file has not changed since; 32 hex digits.

    A cache that is damaged or cannot be written costs a warning and the time to hash.
    """
    before = _state(path)
    if before["size"] < _SMALL:
        return hash_file(path)
    known = _folder() / f"{hash_json(before['path'])}.json"
    found = _read(known)
    if found is not None and {**before, "hash": found.get("hash")} == found:
        return str(found["hash"])
    content = hash_file(path)
    changed = max(before["mtime_ns"], before["ctime_ns"])
    if _state(path) == before and time.time_ns() - changed > _SETTLED_NS:
        try:
            known.parent.mkdir(parents=True, exist_ok=True)
            write_json(known, {**before, "hash": content})
        except (OSError, RunError) as error:
            _LOG.warning("hashes are not remembered: %s", error)
    return content


def _folder() -> Path:
    if named := os.environ.get(_VARIABLE):
        return Path(named)
    # An XDG path that is not absolute is to be ignored (XDG Base Directory Specification).
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path("~/.cache").expanduser()) / (
        "megatron_synth/hashes"
    )


def _state(path: Path) -> dict[str, Any]:
    found = path.stat()
    return {
        "path": str(path.resolve()),
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,  # mtime can be set back, as copying tools do
        "inode": found.st_ino,
    }


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, dict) and isinstance(found["hash"], str) and len(found["hash"]) == 32:
            return found
        damage = "not what was written there"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        damage = f"{type(error).__name__}: {error}"
    _LOG.warning("%s: a remembered hash is ignored: %s", path, damage)
    return None
