"""One shard of a synthesis step: ask, commit, stop when enough is kept.

What the shard's product is, is a function of its log alone: items are taken in the order of their
index, up to the first at which the kept tokens reach the target, or all of them without a target.
What the engine answered beyond that (its batch was still full) stays in the log, unused and
counted.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_synth.config import RunError
from megatron_synth.corpus import Document
from megatron_synth.engines import Completion, Engine, Request, RequestLog
from megatron_synth.runs import get_logger
from megatron_synth.synthesis.config import SynthesisConfig
from megatron_synth.synthesis.contract import Item, Method
from megatron_synth.synthesis.filters import (
    NO_CONTEXT,
    FilterContext,
    drop_reason,
    packed_tokens,
)
from megatron_synth.synthesis.state import ShardState, read_state, write_state
from megatron_synth.synthesis.writing import Running, replay

_LOG = get_logger(__name__)

_REPORT_SECONDS = 0.5
_TRUST_MEAN_AFTER = 32  # settled items before their mean length is used to plan the tail
_FAILURES_BEFORE_STOP = 32  # without an answer between them


@dataclass(frozen=True)
class Outcome:
    """A written document and what the filters say about it."""

    item: Item
    document: Document
    source_text: str
    reason: str | None


class Shard:
    """The work of one shard.

    Args:
        config: The step's settings.
        number: This shard, 0 to `config.shards` - 1.
        method: Names the items and writes their documents.
        log: The shard's own.
        state_path: Where progress goes; None writes none.
        context: What the filters know of the method.
        sample: Make no more than so many documents, and be content with what they are.
    """

    def __init__(
        self,
        config: SynthesisConfig,
        number: int,
        method: Method,
        log: RequestLog,
        state_path: Path | None = None,
        context: FilterContext = NO_CONTEXT,
        sample: int | None = None,
    ) -> None:
        self._config = config
        self._context = context
        self._sample = sample
        self._number = number
        self._method = method
        self._log = log
        self._state_path = state_path
        earlier = read_state(state_path) if state_path and state_path.is_file() else ShardState()
        self.state = ShardState(
            seconds=earlier.seconds, new_output_tokens=earlier.new_output_tokens
        )
        self._clock = 0.0
        self._target = _share(config.tokens, number, config.shards)
        cap = _share(config.request_cap, number, config.shards)
        self._cap = cap if sample is None or (cap is not None and cap < sample) else sample
        self._items = method.items(number, config.shards)
        self._exhausted = False
        self._place = 0  # items of the sequence that were taken up
        self._running = 0  # of them without a document
        self._kept_at: dict[int, int] = {}  # place -> kept tokens, for places past the prefix
        self._prefix = 0  # items of the unbroken beginning that are settled
        self._prefix_tokens = 0
        self._ready: deque[tuple[Running, Request]] = deque()  # to be asked, before new items
        self._asked: dict[str, tuple[Running, Request]] = {}  # asked and not committed
        self._tries: Counter[str] = Counter()
        self._held: list[Completion] = []  # failures since the last answer
        self._answers = 0

    def run(self, start_engine: Callable[[], Engine]) -> ShardState:
        """Ask until the target is reached; the engine is started when the first request is due.

        Raises:
            RunError: The engine only fails, the filters drop nearly everything, or the items end
                before the target (and `allow_short` is off).
        """
        reported = self._clock = time.monotonic()
        engine: Engine | None = None
        while not self._done():
            engine = self._fill(engine, start_engine)
            if engine is not None and self._unfinished:
                for completion in engine.step():
                    self._take(completion, engine)
                self._count_in(self._log.commit_if_due())
            elif self._log.waiting:
                self._count_in(self._log.commit())
            elif self._held:
                self._accept_failures()
            elif not self._done():
                self._end_of_items()
                break
            if time.monotonic() - reported >= _REPORT_SECONDS:
                reported = time.monotonic()
                self._report()
        if engine is not None:
            engine.cancel()
        self._count_in(self._log.commit())
        self._report()
        return self.state

    def product(self) -> Iterator[Outcome]:
        """The documents that make up the shard's product, in order."""
        kept_tokens = 0
        items = self._method.items(self._number, self._config.shards)
        for place, (item, document) in enumerate(replay(self._method, items, self._log)):
            if self._target is not None and kept_tokens >= self._target:
                return
            if self._cap is not None and place >= self._cap:
                return
            outcome = self._judge(item, document)
            if outcome.reason is None:
                kept_tokens += packed_tokens(outcome.document)
            yield outcome

    def _done(self) -> bool:
        return self._target is not None and self._prefix_tokens >= self._target

    @property
    def _unfinished(self) -> int:
        """Requests that the engine is working on."""
        return len(self._asked) - self._log.waiting - len(self._held)

    def _fill(self, engine: Engine | None, start_engine: Callable[[], Engine]) -> Engine | None:
        """Keep the engine full; what the log answers already needs no engine."""
        while not self._done():
            if self._ready:
                if engine is None:
                    engine = start_engine()
                    self._clock = time.monotonic()
                if len(self._asked) - len(self._held) >= engine.concurrency:
                    break
                self._ask(*self._ready.popleft(), engine)
                continue
            if not self._item_is_due(engine):
                break
            item = next(self._items, None)
            if item is None:
                self._exhausted = True
                break
            running = Running(self._place, item, self._method.write(item))
            self._place += 1
            self._running += 1
            self._take_up(running, running.start(self._log))
        return engine

    def _item_is_due(self, engine: Engine | None) -> bool:
        """Whether another item may be begun.

        What is asked and not committed stays within the engine's concurrency: that bounds what a
        kill makes us ask again. Near the end no more is begun than the mean so far says.
        """
        if self._exhausted or (self._cap is not None and self._place >= self._cap):
            return False
        outstanding = len(self._asked) - len(self._held)
        if engine is None or not outstanding:
            return True
        if outstanding >= engine.concurrency:
            return False
        if self._target is None or self.state.settled < _TRUST_MEAN_AFTER:
            return True
        expected = self._running * self.state.kept_tokens / self.state.settled
        return self.state.kept_tokens + expected < self._target

    def _ask(self, running: Running, request: Request, engine: Engine) -> None:
        self._asked[request.key] = (running, request)
        self._log.ask(request.key)
        engine.submit(request)

    def _take(self, completion: Completion, engine: Engine) -> None:
        """Write an answer to the log; ask again after a passing failure.

        A failure is written only once an answer has come after it: then the engine works, and
        the failure is the request's own.
        """
        key = completion.key
        if completion.error is None:
            self._answers += 1
            self._write_held()
            self._log.append(completion)
            return
        self._tries[key] += 1
        if completion.transient and self._tries[key] < self._config.tries:
            engine.submit(self._asked[key][1])
            return
        self._held.append(completion)
        self._log.note_failure(key)
        if len(self._held) >= _FAILURES_BEFORE_STOP:
            self._raise_engine_fails()

    def _accept_failures(self) -> None:
        """No request is left that could prove the engine: go by what it did before.

        After a restart the log proves it for what is refused for good. Passing failures may mean
        that the engine is away now, so that only the user can say that they are final.
        """
        refused = not any(failure.transient for failure in self._held)
        proven = len(self._log) and (refused or self._config.allow_short)
        if not self._answers and not proven:
            self._raise_engine_fails()
        self._write_held()

    def _write_held(self) -> None:
        for failure in self._held:
            self._log.append(failure)
        self._held = []

    def _raise_engine_fails(self) -> None:
        texts = Counter(failure.error for failure in self._held)
        common = "; ".join(f"{count} times {text}" for text, count in texts.most_common(3))
        raise RunError(
            f"the engine failed {len(self._held)} requests in a row, after {self._answers} "
            f"answers: {common}",
            where=f"shard {self._number}",
            fix="Answers so far are kept, these failures are not recorded. Mend the engine and "
            "run the same command again. If it works, and these last requests alone can never be "
            "answered, synthesis.allow_short=true records them as failed.",
        )

    def _count_in(self, committed: list[Completion]) -> None:
        for completion in committed:
            running, _ = self._asked.pop(completion.key)
            self.state.new_output_tokens += completion.output_tokens
            self._take_up(running, running.answer(completion, self._log))

    def _take_up(self, running: Running, requests: list[Request]) -> None:
        """Line up what an item asks next, or settle it when its document is written."""
        self._ready.extend((running, request) for request in requests)
        if running.document is not None:
            self._running -= 1
            self._settle(running.place, self._judge(running.item, running.document))

    def _settle(self, place: int, outcome: Outcome) -> None:
        tokens = packed_tokens(outcome.document) if outcome.reason is None else 0
        self.state.settled += 1
        if outcome.reason is None:
            self.state.kept += 1
            self.state.kept_tokens += tokens
        else:
            dropped = self.state.dropped
            dropped[outcome.reason] = dropped.get(outcome.reason, 0) + 1
        self._kept_at[place] = tokens
        while self._prefix in self._kept_at and not self._done():
            self._prefix_tokens += self._kept_at.pop(self._prefix)
            self._prefix += 1
        self._stop_if_all_dropped()

    def _judge(self, item: Item, document: Document) -> Outcome:
        source_text = self._method.source_text(item)
        reason = drop_reason(self._config.filters, document, source_text, self._context)
        return Outcome(item, document, source_text, reason)

    def _stop_if_all_dropped(self) -> None:
        state = self.state
        if state.settled < self._config.min_kept_after:
            return
        if state.kept < self._config.min_kept_share * state.settled:
            raise RunError(
                f"the filters keep {state.kept} of {state.settled} documents, under "
                f"min_kept_share={self._config.min_kept_share}; dropped: {_describe(state)}",
                where=f"shard {self._number}",
                fix="The generator is most likely too weak or its context too short. Look at the "
                "request log, loosen synthesis.filters, or set min_kept_share=0 to go on anyway.",
            )

    def _end_of_items(self) -> None:
        if self._sample is not None:
            return
        state = self.state
        # A cap that is just as large as the work cuts nothing off.
        self._exhausted = self._exhausted or next(self._items, None) is None
        if self._target is None and self._exhausted:
            return
        ended = (
            "all that the source documents and synthesis.generations give,"
            if self._exhausted
            else "the most that max_requests allows,"
        )
        wanted = "" if self._target is None else f" of {self._target}"
        message = (
            f"{state.settled} requests, {ended} gave {state.kept_tokens}{wanted} tokens; "
            f"dropped: {_describe(state)}"
        )
        if not self._config.allow_short or not state.kept:
            raise RunError(
                message,
                where=f"shard {self._number}",
                fix="Raise synthesis.max_requests or synthesis.generations, ask for fewer "
                "synthesis.tokens, or set synthesis.allow_short=true.",
            )
        _LOG.warning("shard %d: %s", self._number, message)

    def _report(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self._clock
        self._clock = now
        if self._state_path is not None:
            write_state(self._state_path, self.state)


def share_of(total: int, shard: int, shards: int) -> int:
    """The part of `total` that falls to a shard; the parts add up to `total`."""
    return total // shards + (shard < total % shards)


def _share(total: int | None, shard: int, shards: int) -> int | None:
    return None if total is None else share_of(total, shard, shards)


def _describe(state: ShardState) -> str:
    return (
        ", ".join(f"{n} {reason}" for reason, n in Counter(state.dropped).most_common()) or "none"
    )
