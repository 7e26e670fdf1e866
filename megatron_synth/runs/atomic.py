"""Files that are either whole or absent."""

import errno
import glob
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from megatron_synth.config import RunError

_CANNOT_WRITE = frozenset(
    (
        *(errno.ENOENT, errno.EISDIR),  # no such folder, or a folder in its place
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # full
        *(errno.EROFS, errno.EACCES, errno.EPERM),  # forbidden
        *(errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG),  # a file where a folder should be
    )
)


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file that becomes `path` when the block ends without an error.

    The content is on disk (fsync) before the rename. A full disk raises `RunError`; on any error
    the temporary file is removed and `path` is what it was before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    encoding = None if "b" in mode else "utf-8"
    try:
        with disk_errors(path):
            with temporary.open(mode, encoding=encoding) as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(path)
            fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def clear_leftovers(path: Path) -> None:
    """Remove what killed processes left of `atomic_write(path)`; call it where no other writes."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        left.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, quota or read-only file system into one clear `RunError`."""
    try:
        yield
    except OSError as error:
        if error.errno in _CANNOT_WRITE and _is_about(error, path):
            raise RunError(
                f"cannot write: {os.strerror(error.errno).lower()}",
                where=path,
                fix="Nothing was left under its final name. Make room (or permission) there, or "
                "choose another place, and run the same command again: finished work is kept.",
            ) from error
        raise


def _is_about(error: OSError, path: Path) -> bool:
    """Whether the error is about writing `path`, not about something that the block reads.

    An error while writing names no file; one while opening names the file.
    """
    if error.filename is None:
        return True
    found = Path(os.fsdecode(error.filename))
    return (
        found in (path, path.parent)
        or path in found.parents
        or (found.parent == path.parent and path.name in found.name)
    )


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as readable JSON, atomically. NaN and infinity are refused."""
    try:
        data = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:  # names of files need not be Unicode: JSON can escape that
        data = json.dumps(content, indent=2, allow_nan=False).encode("ascii")
    with atomic_write(path, "wb") as handle:
        handle.write(data + b"\n")
