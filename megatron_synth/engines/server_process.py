"""vLLM's OpenAI server as a process of our own: started, waited for, and ended with us."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from megatron_synth.config import MegatronSynthError, RunError
from megatron_synth.engines.vllm_errors import explain
from megatron_synth.runs import get_logger

_LOG = get_logger(__name__)

_HOST = "127.0.0.1"
_POLL_SECONDS = 0.25
_ANSWER_SECONDS = 5.0
_END_SECONDS = 30.0  # the supervisor itself kills after 20
_LAST_LINES = 12
_LAST_BYTES = 1 << 16
_CONSEQUENCE = re.compile(r"initialization failed|EngineDead|EngineCore encountered")
_ERROR = re.compile(r"\w*(?:Error|Exception)(?:: \S.*|$)|error: .*")


class ServerProcess:
    """A server for one model, on a free port of this machine alone.

    It runs under `runs.supervise`: whatever ends this process, even `kill -9`, ends the server
    with all of its own processes. It takes requests with `key` only, so that neither another user
    of the machine reaches our server nor we reach another's.

    Args:
        arguments: Of vLLM's `EngineArgs`, by name.
        model: For messages.
        start_seconds: Longest wait until it answers.

    Attributes:
        url: Where it answers, `/v1` included.
        name: The model's name there.
        key: What it asks for.

    Raises:
        RunError: It ended, or did not answer in time; the message holds its last words.
        ConfigError: vLLM cannot run this model here.
    """

    def __init__(self, arguments: Mapping[str, Any], model: Path, start_seconds: float) -> None:
        self.key = secrets.token_urlsafe(24)
        self.name = f"model-{secrets.token_hex(4)}"
        self._model = model
        self._root = f"http://{_HOST}:{_free_port()}"
        self.url = f"{self._root}/v1"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  without a name: nothing to clean up
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "megatron_synth.runs.supervise"),
                *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
                *("--host", _HOST, "--port", self._root.rpartition(":")[2]),
                *("--served-model-name", self.name, "--disable-uvicorn-access-log"),
                *_flags(arguments),
            ],
            stdin=subprocess.PIPE,  # closed by our death: then the supervisor ends the server
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches us alone
            env={
                **os.environ,
                "VLLM_API_KEY": self.key,
                "VLLM_ENABLE_V1_MULTIPROCESSING": "1",  # the server knows no other way
            },
        )
        try:
            self._wait(start_seconds)
        except BaseException:
            self.close()
            raise

    def ended(self, seconds: float = 0.0) -> bool:
        """Whether it has ended, or does so within `seconds`."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.poll() is not None

    def failure(self, doing: str, fix: str) -> MegatronSynthError:
        """The error to raise when it has ended by itself."""
        lines = self._last_lines()
        status = self._process.returncode
        number = -status if status < 0 else status - 128
        how = f"signal {number}" if number > 0 else f"exit status {status}"
        hint = "Is the memory enough? " if number == signal.SIGKILL else ""
        fix = f"{hint}{fix}"
        named = [found.group() for line in lines if (found := _ERROR.search(line))]
        named = [line for line in named if not _CONSEQUENCE.search(line)]
        if not named:
            what = f"the vLLM server ended with {how} while {doing}"
            return RunError(f"{what}{_shown(lines)}", where=self._model, fix=fix)
        error = explain(RuntimeError(named[-1]), self._model, doing)
        return type(error)(
            f"the vLLM server ended with {how}: {error.what}{_shown(lines)}",
            where=error.where,
            fix=error.fix or fix,
        )

    def close(self) -> None:
        """End it with all of its processes."""
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._log.close()

    def _wait(self, seconds: float) -> None:
        started = time.monotonic()
        while not self._answers():
            if self.ended(_POLL_SECONDS):
                raise self.failure("starting as a server", "Mend what its log says.")
            if time.monotonic() - started > seconds:
                raise RunError(
                    f"the vLLM server gave no answer for {seconds:g} s{_shown(self._last_lines())}",
                    where=self._model,
                    fix="Raise engine.start_seconds if loading this model takes longer.",
                )
        _LOG.info("the vLLM server answers after %.0f s", time.monotonic() - started)

    def _answers(self) -> bool:
        """Whether it is up, and is ours."""
        try:
            # No proxy that the environment may name has a way to this machine.
            with httpx.Client(trust_env=False, timeout=_ANSWER_SECONDS) as client:
                if client.get(f"{self._root}/health").status_code != httpx.codes.OK:
                    return False
                key = {"Authorization": f"Bearer {self.key}"}
                models = client.get(f"{self.url}/models", headers=key)
        except httpx.TransportError:
            return False
        return models.status_code == httpx.codes.OK and self.name in models.text

    def _last_lines(self) -> list[str]:
        descriptor = self._log.fileno()  # the position belongs to the server, too
        start = max(0, os.fstat(descriptor).st_size - _LAST_BYTES)
        text = os.pread(descriptor, _LAST_BYTES, start).decode("utf-8", "replace")
        return [line.rstrip() for line in text.splitlines() if line.strip()]


def _shown(lines: list[str]) -> str:
    """The end of a log, for a message."""
    last = "".join(f"\n  | {line[:300]}" for line in lines[-_LAST_LINES:])
    return f"; the end of its log:{last}" if last else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _flags(arguments: Mapping[str, Any]) -> Iterator[str]:
    """The arguments as vLLM's command line has them."""
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
            continue
        yield f"--{flag}"
        if isinstance(value, list):
            yield from map(str, value)
        else:
            yield json.dumps(value) if isinstance(value, dict) else str(value)
