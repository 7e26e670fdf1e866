"""Slurm's commands: submit a script, ask how jobs stand."""

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_synth.config import ConfigError, RunError

_LIVE = frozenset(
    {
        *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD"),
        *("REQUEUE_FED", "RESIZING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED"),
        *("SUSPENDED", "RESV_DEL_HOLD"),
    }
)
_NEVER = "DependencyNeverSatisfied"


@dataclass(frozen=True)
class Job:
    """How a job stands.

    Attributes:
        id: Its number.
        state: Slurm's word, such as PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT.
        reason: Why it waits, or the nodes that it runs on.
    """

    id: int
    state: str
    reason: str = ""

    @property
    def live(self) -> bool:
        """Whether it will still do something."""
        return self.state in _LIVE and self.reason != _NEVER


def submit_script(script: Path, after: Sequence[int] = ()) -> int:
    """Submit `script`, to start when all jobs of `after` ended well; gives its number.

    A job whose dependency can no longer be met is cancelled by Slurm.

    Raises:
        RunError: Slurm refuses it.
        ConfigError: There is no Slurm here.
    """
    command = ["sbatch", "--parsable"]
    if after:
        ids = ":".join(map(str, after))
        command += [f"--dependency=afterok:{ids}", "--kill-on-invalid-dep=yes"]
    found = _run([*command, str(script)])
    if found.returncode:
        raise RunError(
            f"sbatch refused it: {found.stderr.strip() or found.stdout.strip()}",
            where=script,
            fix="See the profile's partition, account, resources and limits.",
        )
    return int(found.stdout.strip().splitlines()[-1].split(";")[0])


def find_jobs(ids: Iterable[int]) -> dict[int, Job]:
    """How jobs stand; one that Slurm has forgotten is absent.

    Asks `squeue`, then `scontrol` (which remembers ended jobs for a while), then `sacct` where
    the site keeps accounts.

    Raises:
        ConfigError: There is no Slurm here.
    """
    wanted = sorted(set(ids))
    found: dict[int, Job] = {}
    if not wanted:
        return found
    # A number that is forgotten makes `squeue -j` fail for all, so that its own user's are read.
    listing = _run(["squeue", "--noheader", "--all", "--me", "--states=all", "-o", "%A|%T|%R"])
    for line in listing.stdout.splitlines():
        job, state, reason = line.split("|", 2)
        if int(job) in wanted:
            found[int(job)] = Job(int(job), state, reason.strip("()"))
    for number in wanted:
        if number not in found and (older := _from_scontrol(number) or _from_sacct(number)):
            found[number] = older
    return found


def _from_scontrol(number: int) -> Job | None:
    found = _run(["scontrol", "--oneliner", "show", "job", str(number)])
    state = re.search(r"\bJobState=(\S+)", found.stdout)
    reason = re.search(r"\bReason=(\S+)", found.stdout)
    if found.returncode or not state:
        return None
    return Job(number, state[1], reason[1] if reason and reason[1] != "None" else "")


def _from_sacct(number: int) -> Job | None:
    if shutil.which("sacct") is None:
        return None
    found = _run(["sacct", "-n", "-X", "-P", "-j", str(number), "-o", "State,Reason"])
    if found.returncode or not found.stdout.strip():
        return None
    state, _, reason = found.stdout.strip().splitlines()[-1].partition("|")
    return Job(number, state.split()[0], "" if reason == "None" else reason)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ConfigError(
            f"no {command[0]} here: this machine is no login node of a Slurm cluster",
            fix="Run it where Slurm's commands are, or use `launch render` and copy the folder.",
        ) from None
