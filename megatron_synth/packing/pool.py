"""Pack parts in several processes."""

import os
import selectors
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

import megatron_synth
from megatron_synth.config import DataError, MegatronSynthError, RunError
from megatron_synth.corpus.columns import Part
from megatron_synth.packing.parts import OnProgress
from megatron_synth.packing.worker import Answer, Failed, Job, Read, Task

_SECONDS_TO_END = 10.0
_MAIN = "from megatron_synth.packing.worker import main; main()"


class Pool:
    """Processes that pack parts; they start at once, and load what they need while we go on.

    They end with this process, however it ends (see `worker`).
    """

    def __init__(self, job: Job, workers: int) -> None:
        tasks = [os.pipe() for _ in range(workers)]
        answers = [os.pipe() for _ in range(workers)]
        theirs = [(t[0], a[1]) for t, a in zip(tasks, answers, strict=True)]
        package = str(Path(megatron_synth.__file__).parents[1])
        earlier = os.environ.get("PYTHONPATH")
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-c", _MAIN),
                msgspec.json.encode(job).decode(),
                *(f"{t},{a}" for t, a in theirs),
            ],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a library prints must not mix with the answers of a verb
            pass_fds=[descriptor for pair in theirs for descriptor in pair],
            env={
                **os.environ,
                "PYTHONPATH": f"{package}:{earlier}" if earlier else package,
                # The processes share the cores among them: one thread each, and none to fork.
                "RAYON_NUM_THREADS": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
            },
        )
        for pair in theirs:
            for descriptor in pair:
                os.close(descriptor)
        self._workers = [_Worker(t[1], a[0]) for t, a in zip(tasks, answers, strict=True)]

    def pack(self, parts: Mapping[int, Part], fast: bool, on_progress: OnProgress) -> Iterator[int]:
        """Pack `parts`, with the fast encoder or without; yield the number of each when whole.

        Raises:
            MegatronSynthError: What a worker raised.
            RunError: A worker died.
        """
        tasks = (_task(number, part, fast) for number, part in sorted(parts.items()))
        with selectors.DefaultSelector() as selector:
            busy = 0
            for worker in self._workers:
                if worker.give(next(tasks, None)):
                    selector.register(worker.answers, selectors.EVENT_READ, worker)
                    busy += 1
            while busy:
                for key, _ in selector.select():
                    worker = key.data
                    for answer in worker.read():
                        if isinstance(answer, Read):
                            on_progress(answer.bytes, answer.tokens)
                            continue
                        if isinstance(answer, Failed):
                            raise _error(answer)
                        if not worker.give(next(tasks, None)):
                            selector.unregister(worker.answers)
                            busy -= 1
                        yield answer.number

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Worker:
    """Our ends of one process's pipes."""

    def __init__(self, tasks: int, answers: int) -> None:
        self._tasks: int | None = tasks
        self.answers = answers
        self._rest = b""

    def give(self, task: Task | None) -> bool:
        """Hand over the next part; None ends the process."""
        assert self._tasks is not None
        if task is None:
            os.close(self._tasks)
            self._tasks = None
            return False
        with suppress(BrokenPipeError):  # it has died: `read` says so
            os.write(self._tasks, msgspec.json.encode(task) + b"\n")
        return True

    def read(self) -> Iterator[Answer]:
        """The answers that are there."""
        data = os.read(self.answers, 1 << 16)
        if not data:
            raise RunError(
                "a packing process died",
                where="pack",
                fix="Too little memory is the usual cause: run the same command again with fewer "
                "workers. Finished parts are kept.",
            )
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            yield msgspec.json.decode(line, type=Answer)

    def close(self) -> None:
        """Close both pipes: the process ends at the latest when it wants to answer."""
        if self._tasks is not None:
            os.close(self._tasks)
            self._tasks = None
        os.close(self.answers)


def _task(number: int, part: Part, fast: bool) -> Task:
    # Any bytes can be a path, but not every path is Unicode.
    path = os.fsencode(part.path).decode("latin-1")
    return Task(number, fast, path, part.start, part.stop, part.size)


def _error(failed: Failed) -> MegatronSynthError:
    kind = DataError if failed.user else RunError
    return kind(failed.what, where=failed.where, fix=failed.fix)
