"""What a step's process leaves behind when it fails, for the process that shows it."""

import traceback
from pathlib import Path

from pydantic import BaseModel, ValidationError

from megatron_synth.config import MegatronSynthError, RunError, UserError
from megatron_synth.runs import atomic_write

STOPPED = 75
"""Exit status (EX_TEMPFAIL) of a step that was asked to stop and saved what it had."""


class Failure(BaseModel):
    """One failure, as a message for a person."""

    what: str
    where: str | None = None
    fix: str | None = None
    users_fault: bool = False
    key: str | None = None
    """Address of the product that was worked on."""

    def error(self, step: str, log: Path) -> MegatronSynthError:
        """The error to raise in the launcher."""
        kind = UserError if self.users_fault else RunError
        place = f"step {step}" + (f": {self.where}" if self.where else "")
        return kind(
            self.what, where=place, fix="\n  ".join(filter(None, [self.fix, f"Log: {log}"]))
        )


def describe(error: BaseException) -> Failure:
    """Turn any error into a message: our own as they are, others by their last line."""
    if isinstance(error, MegatronSynthError):
        return Failure(
            what=error.what,
            where=error.where,
            fix=error.fix,
            users_fault=isinstance(error, UserError),
        )
    last = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    return Failure(
        what=f"failed unexpectedly: {last}",
        fix="The log has the traceback. Run the same command again to go on from here.",
    )


def log_file(logs: Path, step: str) -> Path:
    """Where a step's log goes; every try is appended."""
    return logs / f"{step}.log"


def failure_file(logs: Path, step: str) -> Path:
    """Where a step says why it failed; absent while it has not."""
    return logs / f"{step}.failure.json"


def write_failure(path: Path, failure: Failure) -> None:
    """Write it beside the step's log."""
    with atomic_write(path) as handle:
        handle.write(failure.model_dump_json(indent=2))


def read_failure(path: Path) -> Failure | None:
    """The failure that a step left, or None where it left none (it was killed)."""
    try:
        return Failure.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
