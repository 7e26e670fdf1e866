"""A Ray of our own for the time of one step: small, private, and surely gone afterwards."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from megatron_synth.config import RunError
from megatron_synth.engines.vllm_settings import WAIT_POLICY
from megatron_synth.runs import get_logger
from megatron_synth.synthesis.config import RayConfig

_LOG = get_logger(__name__)

# A unix socket's path holds at most 107 bytes; Ray adds up to this many to its folder:
# /session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.4194304
_SOCKET_PATH = 107
_RAY_ADDS = 75
_SHORT = "/tmp"  # where TMPDIR is too long
_PREFIX = "ray-"
_MIB = 1 << 20
_OBJECT_STORE_MB = 128
_SECONDS_TO_END = 10.0

_ENVIRONMENT = {
    # In an array job Curator would keep only the tasks of "its" array member: the rest vanish.
    "NEMO_CURATOR_SLURM_ARRAY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Ray's workers are polite by default (nice 15): an engine would starve beside anything else.
    "RAY_worker_niceness": "0",
}


@contextmanager
def local_ray(config: RayConfig, record: Path, engines: int) -> Iterator[bool]:
    """Run the block with a private Ray on this machine; a running one is never joined.

    All of Ray's files lie in a folder that is removed at the end, or, after a kill, at the next
    start. The machine's cores are divided among `engines` workers.

    Args:
        config: How large it is.
        record: File that names Ray's folder while there is one.
        engines: Generation workers.

    Yields:
        False: the head node, which is the only one, takes part.

    Raises:
        RunError: Ray does not start.
    """
    _remove_leftovers(record)
    folder = _socket_safe_folder(record.parent)
    record.write_text(str(folder), encoding="utf-8")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with ray_environment(max(1, len(os.sched_getaffinity(0)) // engines)):
        import ray

        try:
            try:
                ray.init(
                    address="local",
                    num_cpus=config.num_cpus or engines + 1,
                    object_store_memory=(config.object_store_mb or _OBJECT_STORE_MB) * _MIB,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    _temp_dir=str(folder),
                )
            except Exception as error:
                raise RunError(
                    f"Ray did not start: {' '.join(str(error).split())}",
                    where=folder,
                    fix="Look at the logs there; too little memory and a full disk are the usual "
                    "causes. Then run the same command again.",
                ) from error
            yield False
        finally:
            ray.shutdown()
            _end_children(before, folder)
            shutil.rmtree(folder, ignore_errors=True)
            record.unlink(missing_ok=True)


@contextmanager
def ray_environment(threads: int) -> Iterator[dict[str, str]]:
    """Set what Ray's processes inherit, and put back what was there.

    Args:
        threads: Of a generation worker.

    Yields:
        What is set.
    """
    values = {
        **_ENVIRONMENT,
        # Ray would give each worker as many threads as CPUs it reserves.
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", WAIT_POLICY),
    }
    earlier = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield values
    finally:
        for name, value in earlier.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _socket_safe_folder(work: Path) -> Path:
    """A new folder: beside the step's files where the path is short enough, else in the
    temporary folder, else in /tmp.
    """
    for parent in (work, Path(tempfile.gettempdir()), Path(_SHORT)):
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent.absolute()))
        if len(os.fsencode(folder)) + _RAY_ADDS <= _SOCKET_PATH:
            return folder
        folder.rmdir()
    raise RunError(
        "no folder has a path short enough for Ray's sockets",
        where=work,
        fix="Set TMPDIR to a short path.",
    )


def _remove_leftovers(record: Path) -> None:
    """Remove what a killed try left: agents that outlive their Ray for a minute, and its folder."""
    if not record.is_file():
        return
    folder = Path(record.read_text(encoding="utf-8"))
    if folder.name.startswith(_PREFIX):
        _end([process for process in psutil.process_iter() if _uses(process, folder)], patience=1)
        shutil.rmtree(folder, ignore_errors=True)
    record.unlink()


def _end_children(before: set[int], folder: Path) -> None:
    """End those of our new child processes that belong to this Ray and outlive it."""
    children = psutil.Process().children(recursive=True)
    ours = [c for c in children if c.pid not in before and _uses(c, folder)]
    _end(ours, patience=_SECONDS_TO_END)


def _end(processes: list[psutil.Process], patience: float) -> None:
    _, alive = psutil.wait_procs(processes, timeout=patience)
    for process in alive:
        _LOG.info("ending process %d, left over from Ray", process.pid)
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_SECONDS_TO_END)


def _uses(process: psutil.Process, folder: Path) -> bool:
    """Whether a process names `folder` in its command, or holds a file in it open.

    Ray's agents and workers overwrite their command line and their environment.
    """
    try:
        named = [*process.cmdline(), *(opened.path for opened in process.open_files())]
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
    return any(str(folder) in text for text in named)
