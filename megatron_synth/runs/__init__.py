"""Run folders: what makes every step atomic, content-addressed and resumable.

In: a step's kind, its config and the manifests of what it reads. Out: a folder whose name holds
the hash of all of that, with `manifest.json` written last. A folder under its final name is
always whole; work in progress lies in `NAME.partial` and is gone on with after a kill.
Cost: one hash of every product file (xxh3, several GB/s).
"""

from megatron_synth.runs.atomic import atomic_write, disk_errors, fsync_folder, write_json
from megatron_synth.runs.hash_cache import hash_file_once
from megatron_synth.runs.hashing import hash_file, hash_json
from megatron_synth.runs.locks import exclusive, shared
from megatron_synth.runs.logs import get_logger, log_to
from megatron_synth.runs.manifest import Manifest, Parent, read_manifest, write_manifest
from megatron_synth.runs.metrics import MetricsLog, read_metrics
from megatron_synth.runs.progress import Progress, ProgressState, read_progress
from megatron_synth.runs.showing import describe_progress, format_seconds, shown_progress
from megatron_synth.runs.store import AlreadyDoneError, StepWork, Store

__all__ = [
    "AlreadyDoneError",
    "Manifest",
    "MetricsLog",
    "Parent",
    "Progress",
    "ProgressState",
    "StepWork",
    "Store",
    "atomic_write",
    "describe_progress",
    "disk_errors",
    "exclusive",
    "format_seconds",
    "fsync_folder",
    "get_logger",
    "hash_file",
    "hash_file_once",
    "hash_json",
    "log_to",
    "read_manifest",
    "read_metrics",
    "read_progress",
    "shared",
    "shown_progress",
    "write_json",
    "write_manifest",
]
