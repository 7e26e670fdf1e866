"""An engine with a request log: what was answered once is never asked again."""

from megatron_synth.engines.log import RequestLog
from megatron_synth.engines.requests import Completion, Engine, Request


class LoggedEngine:
    """`Engine` in front of another one; answers are committed to the log before they come back.

    A request whose key the log knows is answered from there. After a kill, only what was in flight
    is asked again. Failures are no answers: they are handed on and asked anew in the next run.

    Args:
        engine: Answers what the log does not know.
        log: Of this run. Keys must be different for different requests.
    """

    def __init__(self, engine: Engine, log: RequestLog) -> None:
        self.concurrency = engine.concurrency
        self._engine = engine
        self._log = log
        self._known: list[Completion] = []
        self._running = 0

    def submit(self, request: Request) -> None:
        """Take a request."""
        if request.key in self._log:
            self._known.append(self._log.read(request.key))
            return
        self._log.ask(request.key)
        self._engine.submit(request)
        self._running += 1

    def step(self) -> list[Completion]:
        """Answers that are on the disk now, and failures."""
        if self._known:
            known, self._known = self._known, []
            return known
        failed = []
        for completion in self._engine.step() if self._running else ():
            self._running -= 1
            if completion.error is None:
                self._log.append(completion)
            else:
                self._log.note_failure(completion.key)
                failed.append(completion)
        # What waits to be committed counts as in flight: with nothing else it must not wait.
        return failed + (self._log.commit_if_due() if self._running else self._log.commit())

    def cancel(self) -> None:
        """Forget every unfinished request."""
        self._log.commit()
        self._known = []
        self._running = 0
        self._engine.cancel()

    def close(self) -> None:
        """End the engine and let the log go."""
        try:
            self._engine.close()
        finally:
            self._log.close()
