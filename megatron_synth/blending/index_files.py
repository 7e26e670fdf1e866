"""Arrays that are computed once a node and then mapped by every process of it.

An index is named by what it is made from, so one that is there is right; it appears as a whole,
by rename. The folder is the node's own: no shared file system is needed, and what is lost is
computed again. Default: `megatron_synth-UID` in the system's folder for temporary files, or what
the environment variable MEGATRON_SYNTH_INDEX names.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_synth.config import RunError
from megatron_synth.runs import exclusive, get_logger, hash_json
from megatron_synth.runs.atomic import atomic_write, clear_leftovers, disk_errors

_VARIABLE = "MEGATRON_SYNTH_INDEX"
_FORMAT = 1
_PATIENCE = 3600.0  # seconds; another process of this node is building the same index

Int64s = NDArray[np.int64]


class IndexFolder:
    """Where a node keeps its indices.

    Args:
        folder: The folder; made when it is first needed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or _default_folder()

    def array(
        self,
        what: Mapping[str, Any],
        make: Callable[[], Int64s],
        is_right: Callable[[Int64s], bool] = lambda _: True,
    ) -> Int64s:
        """The index that `what` names, mapped; made by `make` if it is not there.

        Of several processes one makes it, and the others wait.

        Args:
            what: Everything that decides the content, as JSON can hold it.
            make: Computes int64[n].
            is_right: Whether an array that was found can be what `make` computes.

        Raises:
            RunError: The folder cannot be written to, or belongs to somebody else.
        """
        name = hash_json({"format": _FORMAT, **what})
        path = self.folder / f"{name}.npy"
        self._refuse_another_users()
        found = _read(path, is_right)
        if found is not None:
            return found
        self.make_folder()
        with exclusive(self.folder / f".{name}.lock", str(path), _PATIENCE, remove=True):
            found = _read(path, is_right)
            if found is None:
                clear_leftovers(path)
                array = make()
                with atomic_write(path, "wb") as handle:
                    np.save(handle, array, allow_pickle=False)
                del array
                found = _read(path, is_right)
        if found is None:
            raise RunError("was written, but cannot be read", where=path)
        return found

    def has(self, what: Mapping[str, Any]) -> bool:
        """Whether the index is there."""
        return (self.folder / f"{hash_json({'format': _FORMAT, **what})}.npy").is_file()

    def make_folder(self) -> None:
        """Make the folder, for this user alone.

        Raises:
            RunError: It cannot be made, or belongs to somebody else.
        """
        with disk_errors(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._refuse_another_users()

    def _refuse_another_users(self) -> None:
        """In a shared `/tmp` anybody may have made a folder of this name, and put files in it."""
        if self.folder.is_dir() and self.folder.stat().st_uid != os.getuid():
            raise RunError(
                "belongs to another user",
                where=self.folder,
                fix=f"Set {_VARIABLE} to a folder of your own on this node.",
            )


def _read(path: Path, is_right: Callable[[Int64s], bool]) -> Int64s | None:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(
            f"cannot be read: {os.strerror(error.errno or 0).lower()}",
            where=path,
            fix=f"Set {_VARIABLE} to a folder of your own on this node.",
        ) from error
    except (ValueError, EOFError) as error:  # a power cut may leave a hole
        get_logger(__name__).warning("%s is damaged and is made again: %s", path, error)
        return None
    if array.dtype == np.int64 and array.ndim == 1 and is_right(np.asarray(array)):
        return np.asarray(array)
    get_logger(__name__).warning("%s is damaged and is made again", path)
    return None


def _default_folder() -> Path:
    given = os.environ.get(_VARIABLE)
    return Path(given) if given else Path(tempfile.gettempdir()) / f"megatron_synth-{os.getuid()}"
