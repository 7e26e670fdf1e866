"""Processes that pack parts: one loads the tokenizer, then forks into as many as are wanted.

It is a process of its own, so that it has no threads that a fork would break, and it loads what
all of them need once. Each fork reads `Task`s, lines of JSON, from a pipe and writes `Answer`s to
another: any number of `Read` and then one `Done` a task; `Failed` instead ends the work, and may
come before any task. The end of the tasks is the end of the process, and so is a closed end of
the answers: when the process that started all this dies, however it dies, they end too.
"""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec

from megatron_synth.config import MegatronSynthError
from megatron_synth.corpus.columns import Part
from megatron_synth.packing.config import PackConfig
from megatron_synth.packing.parts import PartPacker
from megatron_synth.tokens import Tokenizer
from megatron_synth.tokens.fast import FastEncoder, open_fast


class Job(msgspec.Struct):
    """What all tasks have in common.

    Attributes:
        tokenizer: What `Tokenizer.load` takes.
        config: `PackConfig` as JSON.
        folder: The work folder.
    """

    tokenizer: str
    config: str
    folder: str


class Task(msgspec.Struct):
    """One part, and whether the fast encoder may be used; bytes of the path are characters."""

    number: int
    fast: bool
    path: str
    start: int
    stop: int | None
    size: int


class Read(msgspec.Struct, tag=True):
    """Bytes read and ids written since the last answer."""

    bytes: int
    tokens: int


class Done(msgspec.Struct, tag=True):
    """The part is whole."""

    number: int


class Failed(msgspec.Struct, tag=True):
    """The work failed; `user` says that the input is to blame."""

    what: str
    where: str | None
    fix: str | None
    user: bool


Answer = Read | Done | Failed
Say = Callable[[Answer], None]

_NOT_LATIN = "\u3042"
"""A text that makes the fast encoder build its table of characters: once, before the forks."""


def main() -> None:
    """Load, fork, wait. Arguments: the `Job` as JSON, then `TASKS,ANSWERS` for each process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    logging.disable()  # what is to be said of the encoder, the parent says
    job = msgspec.json.decode(sys.argv[1], type=Job)
    pipes = [tuple(map(int, pair.split(","))) for pair in sys.argv[2:]]
    loaded: list[tuple[Tokenizer, FastEncoder | None]] = []

    def load() -> None:
        tokenizer = Tokenizer.load(job.tokenizer)
        fast = open_fast(tokenizer)
        if fast is not None:
            fast.encode(_NOT_LATIN)
        loaded.append((tokenizer, fast))

    if not _reported(load, _speaker(pipes[0][1])):
        return
    tokenizer, fast = loaded[0]
    for i, (tasks, answers) in enumerate(pipes):
        if os.fork() == 0:
            for other in pipes[i + 1 :]:
                for descriptor in other:
                    os.close(descriptor)
            _work(job, tokenizer, fast, tasks, answers)
            os._exit(0)
        os.close(tasks)
        os.close(answers)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def _work(
    job: Job, tokenizer: Tokenizer, fast: FastEncoder | None, tasks: int, answers: int
) -> None:
    say = _speaker(answers)

    def pack_all() -> None:
        config = PackConfig.model_validate_json(job.config)
        packer: PartPacker | None = None
        with os.fdopen(tasks, "rb") as source:
            for line in source:
                task = msgspec.json.decode(line, type=Task)
                if packer is None:  # all tasks say the same of the fast encoder
                    encoder = fast if task.fast else None
                    packer = PartPacker(tokenizer, encoder, config, Path(job.folder))
                path = Path(os.fsdecode(task.path.encode("latin-1")))
                part = Part(path, task.start, task.stop, task.size)
                packer.pack(task.number, part, lambda size, tokens: say(Read(size, tokens)))
                say(Done(task.number))

    _reported(pack_all, say)


def _reported(work: Callable[[], None], say: Say) -> bool:
    """Do `work`; what goes wrong is answered. Gives whether all went well."""
    try:
        work()
    except BrokenPipeError:
        return False  # nobody listens any more
    except MegatronSynthError as error:
        say(Failed(error.what, error.where, error.fix, user=error.exit_status == 2))
    except Exception:  # noqa: BLE001  the other side reports it, with where it happened
        say(Failed(traceback.format_exc(), None, None, user=False))
    else:
        return True
    return False


def _speaker(descriptor: int) -> Say:
    def say(answer: Answer) -> None:
        os.write(descriptor, msgspec.json.encode(answer) + b"\n")

    return say
