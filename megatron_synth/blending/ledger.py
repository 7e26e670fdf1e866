"""How much of each corpus has been used after a number of steps: arithmetic on the plan."""

from collections.abc import Callable, Mapping
from typing import Any

from megatron_synth.blending.plan import Plan, PlannedCorpus
from megatron_synth.blending.schedule import schedule_of
from megatron_synth.config import ConfigError


class Ledger:
    """The account of a plan; `at(step)` goes into checkpoints and metrics.

    Args:
        plan: The plan.
        served: Windows of each corpus, by name, in the first so many steps. Needed for plans with
            `order: megatron`, where no arithmetic knows it: `StockStreams.counted`.

    Raises:
        ConfigError: It is needed and not given.
    """

    def __init__(
        self, plan: Plan, served: Callable[[int], Mapping[str, int]] | None = None
    ) -> None:
        if plan.order == "megatron" and served is None:
            raise ConfigError(
                "with order: megatron only the stock datasets know what was served when",
                where="blend.order",
                fix="Give Ledger their count: served=StockStreams(plan).counted.",
            )
        self.plan = plan
        self._served = served or _by_schedule(plan)

    def at(self, step: int) -> dict[str, Any]:
        """What has been used after `step` steps of this plan, as a dict that JSON can hold.

        `windows` and `tokens` (windows x sequence_length) count this plan; `windows_ever`,
        `epochs` (windows_ever / windows_per_epoch) and `dropped_tokens` (remainders of the
        epochs that were finished) count earlier phases too. A corpus is in its first epoch while
        `epochs` is under 1.
        """
        length = self.plan.sequence_length
        served = self._served(step)
        corpora = {c.name: _account(c, served[c.name], length) for c in self.plan.corpora}
        streams: dict[str, dict[str, int]] = {}
        for account in corpora.values():
            stream = streams.setdefault(account["stream"], {"windows": 0, "tokens": 0})
            stream["windows"] += account["windows"]
            stream["tokens"] += account["tokens"]
        return {
            "plan": self.plan.hash,
            "step": step,
            "samples": sum(served.values()),
            "tokens": sum(served.values()) * length,
            "corpora": corpora,
            "streams": streams,
        }


def _by_schedule(plan: Plan) -> Callable[[int], Mapping[str, int]]:
    schedule, names = schedule_of(plan), [c.name for c in plan.corpora]
    return lambda step: dict(zip(names, schedule.before(step), strict=True))


def _account(corpus: PlannedCorpus, windows: int, length: int) -> dict[str, Any]:
    ever = corpus.start + windows
    finished = ever // corpus.windows_per_epoch if corpus.windows_per_epoch else 0
    return {
        "stream": corpus.stream,
        "windows": windows,
        "tokens": windows * length,
        "windows_ever": ever,
        "epochs": ever / corpus.windows_per_epoch if corpus.windows_per_epoch else 0.0,
        "dropped_tokens": finished * corpus.dropped_per_epoch,
    }
