"""The process that works on one step: `python -m megatron_synth.experiments.worker RUN STEP`.

Under torchrun every rank runs it; rank 0 holds the step's lock and commits the product.
"""

import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from megatron_synth.config import MegatronSynthError, RunError
from megatron_synth.experiments.failure import STOPPED, describe, failure_file, write_failure
from megatron_synth.experiments.graph import Status, Step
from megatron_synth.experiments.kinds import KINDS
from megatron_synth.experiments.run_folder import RunFolder
from megatron_synth.runs import (
    AlreadyDoneError,
    Manifest,
    Progress,
    StepWork,
    get_logger,
    log_to,
)

_log = get_logger(__name__)


def work(run: RunFolder, name: str, statuses: Mapping[str, Status]) -> None:
    """Run one step and commit its product; a finished step costs nothing.

    Raises:
        RunError: An input is not made yet, or the work failed.
        UserError: The step's input was wrong.
    """
    status = statuses[name]
    if status.manifest is not None:
        _log.info("%s is done already: %s", name, status.manifest.folder)
        return
    if status.key is None:
        raise RunError("an input of this step is not made yet", where=name)
    inputs: dict[str, Manifest] = {}
    for role, parent in status.step.inputs.items():
        manifest = statuses[parent].manifest
        assert manifest is not None, "a step with a key has all of its inputs"
        inputs[role] = manifest
    if not _is_first_rank():
        folder = run.store.partial(name, status.key)
        folder.mkdir(parents=True, exist_ok=True)
        KINDS[status.step.kind].run(StepWork(folder, inputs, Progress()), _merged(status.step))
        return
    try:
        _commit(run, status, inputs)
    except AlreadyDoneError:
        _log.info("%s was finished by another process", name)


def _commit(run: RunFolder, status: Status, inputs: dict[str, Manifest]) -> None:
    step = status.step
    assert status.key is not None
    with run.store.open(step.name, status.key, inputs) as step_work:
        product = KINDS[step.kind].run(step_work, _merged(step))
        run.store.commit(
            step_work,
            step=step.name,
            kind=step.kind,
            key=status.key,
            config=dict(step.config),
            counts=product.counts,
            tokenizer=product.tokenizer,
        )
    _log.info("%s is done", step.name)


def _merged(step: Step) -> dict[str, Any]:
    """Config and settings, key by key: one mapping for the kind to read."""
    return _merge(step.config, step.settings)


def _merge(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(config)
    for key, value in settings.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _is_first_rank() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    """Run the step named on the command line; leave a failure record if it fails."""
    run, name = RunFolder(Path(sys.argv[1])), sys.argv[2]
    log_to()
    for number in (signal.SIGTERM, signal.SIGUSR1):  # USR1: a cluster's time limit comes near
        signal.signal(number, _leave)  # steps that can save first set a handler of their own
    key = None
    try:
        statuses = run.graph().resolve(run.store)
        key = statuses[name].key
        work(run, name, statuses)
    except Exception as error:  # noqa: BLE001 - the last resort: the launcher shows the message
        if isinstance(error, MegatronSynthError) and error.exit_status == STOPPED:
            _log.info("%s", error)  # asked to stop, and can be gone on with: not a failure
            return STOPPED
        traceback.print_exc()
        failure = describe(error).model_copy(update={"key": key})
        path = failure_file(run.logs, name)
        # Other ranks fail because rank 0 did: its reason is the one to show.
        if _is_first_rank() or not path.exists():
            write_failure(path, failure)
        return 2 if failure.users_fault else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
