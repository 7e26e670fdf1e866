"""The steps of a run: forward, backward, update, record, validation, checkpoint."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.core.optimizer import MegatronOptimizer

from megatron_synth.config import DataError, RunError
from megatron_synth.runs import get_logger
from megatron_synth.runtime import is_main_rank
from megatron_synth.training.batches import Batch, BatchReader
from megatron_synth.training.checkpoints import (
    CheckpointState,
    checkpoint_at,
    latest_checkpoint,
)
from megatron_synth.training.config import TrainConfig
from megatron_synth.training.evaluation import Evaluator
from megatron_synth.training.forward import BatchLoss, run_batch
from megatron_synth.training.history import History, ends_epoch, keep_best
from megatron_synth.training.metrics_record import Recorder
from megatron_synth.training.optimizer import set_step
from megatron_synth.training.rules import best_epoch, is_saturated, is_spike
from megatron_synth.training.saving import CheckpointSaver
from megatron_synth.training.stopping import Reason, StopRequests, agreed
from megatron_synth.training.stragglers import Stragglers
from megatron_synth.training.watchdog import HangWatchdog

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints, in that of the run."""
BEST = "best"
"""Folder of the best epoch's checkpoint, in that of the run."""

_log = get_logger(__name__)


@dataclass
class Steps:
    """The steps of one call of `train`; every rank does them.

    Attributes:
        config: How the run trains.
        out: Its folder.
        model: This rank's part of the model, wrapped for training.
        bare_model: The same without the wrapping.
        optimizer: Megatron-Core's.
        saver: Saves the checkpoints.
        reader: Reads the batches.
        evaluator: Takes validation losses.
        recorder: Makes the records of the metrics.
        history: What the stopping rules look back at.
        stragglers: Compares the ranks.
        data_hash: Hash of the data that a step was trained on.
        account: What the caller keeps with a checkpoint.
        state: After the newest step.
        saved: The newest checkpoint, which may still be being written.
        saved_step: Its step.
    """

    config: TrainConfig
    out: Path
    model: Any
    bare_model: Any
    optimizer: MegatronOptimizer
    saver: CheckpointSaver
    reader: BatchReader
    evaluator: Evaluator
    recorder: Recorder
    history: History
    stragglers: Stragglers
    data_hash: Callable[[int], str]
    account: Callable[[int], dict[str, Any]] | None
    state: CheckpointState
    saved: Path | None
    saved_step: int | None

    def run(
        self, asked: StopRequests, watchdog: HangWatchdog
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Do the steps; yields each with its record, before its checkpoint is saved.

        Raises:
            DataError, RunError: As `train`.
        """
        config, history = self.config, self.history
        sizes, reason, due = config.batch_sizes, Reason.NONE, False
        plateau = config.stopping.plateau
        self._keep_best()  # a kill may have come between a checkpoint and this
        first = self.state.step + 1
        batches = self.reader.read(first, config.steps)
        for step in range(first, config.steps + 1):
            began = time.perf_counter()
            self.stragglers.begin()
            batch = next(batches)
            waited = time.perf_counter() - began
            reason = max(reason, asked.reason())
            stop = reason is not Reason.NONE or self.saver.failed
            loss = self._losses(step, batch, stop=stop)
            rate, norm = self._update(step)
            seconds = time.perf_counter() - began
            watchdog.beat()
            asked.saw(sizes.at(step) * config.sequence_length / seconds)
            record = self.recorder.record(
                step, loss, rate=rate, norm=norm, seconds=seconds, waited=waited
            )
            ranks = self.stragglers.compare()
            if ranks is not None:
                record["ranks"] = ranks
            measured = {
                name: self._evaluate(step, name, watchdog) for name in self.evaluator.due(step)
            }
            if measured:
                record["validation"] = measured
            ends_epoch_here = plateau is not None and ends_epoch(step, plateau)
            if plateau is not None and ends_epoch_here:
                history.epochs.append(measured[plateau.validation])
            saturated = ends_epoch_here and is_saturated(history.epochs)
            last = step == config.steps or saturated
            due |= loss.stop or ends_epoch_here or step % config.save_every == 0
            saves = last or (due and sizes.ends_batch(step))
            if self.account and saves:
                record["account"] = self.account(sizes.batches(step))
            yield step, record
            self.state = self.state.model_copy(
                update={
                    "step": step,
                    "data_hash": self.data_hash(step),
                    "account": record.get("account", {}),
                    "samples": sizes.through(step),
                    "seconds": self.state.seconds + seconds,
                    "loss": loss.mean,
                    "validation": {**self.state.validation, **measured},
                }
            )
            if saves:
                due = False
                self._save(wait=last or loss.stop or ends_epoch_here)
                watchdog.beat()
            if saturated:
                _log.info("saturated after %d epochs, step %d", len(history.epochs), step)
                break
            if loss.stop and saves and not last:
                raise asked.error(agreed(reason), step, config.steps, self.saved)

    def _losses(self, step: int, batch: list[Batch], *, stop: bool) -> BatchLoss:
        """Forward and backward of a step; the gradients stay in the model."""
        config = self.config
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        loss = run_batch(
            self.model,
            batch,
            global_batch_size=config.batch_sizes.at(step),
            sequence_length=config.sequence_length,
            train=True,
            stop=stop,
        )
        if not loss.tokens.sum():
            raise DataError(
                f"every token of step {step} is masked: there is nothing to learn",
                where="training data",
                fix="Check that the windows hold tokens whose loss_mask is 1.",
            )
        self._require_finite(step, "loss", loss.mean)
        self._require_no_spike(step, loss.mean)
        return loss

    def _update(self, step: int) -> tuple[float, float]:
        """The optimizer's step; gives learning rate and gradient norm."""
        config = self.config
        rate = set_step(
            self.optimizer, config.optimizer, config.schedule_in_steps, step, config.steps
        )
        _, norm, _ = self.optimizer.step()
        self._require_finite(step, "gradient norm", norm)
        return rate, float(norm)

    def _save(self, *, wait: bool) -> None:
        """Save the state; `wait` until it is on disk."""
        self.saver.save(self.bare_model, self.optimizer, self.state)
        self.saved = checkpoint_at(self.out / CHECKPOINTS, self.state.step)
        self.saved_step = self.state.step
        if wait:
            self.saver.wait()
            self._keep_best()

    def _keep_best(self) -> None:
        """Keep the newest checkpoint apart where it is that of the best epoch."""
        plateau, losses = self.config.stopping.plateau, self.history.epochs
        ends = plateau is not None and ends_epoch(self.state.step, plateau)
        if not (self.saved and losses and ends and is_main_rank()):
            return
        if best_epoch(losses) == len(losses):
            keep_best(self.saved, self.out / BEST)

    def _evaluate(self, step: int, name: str, watchdog: HangWatchdog) -> float:
        mean = self.evaluator.measure(self.model, name, watchdog.beat)
        self._require_finite(step, f"validation loss ({name})", mean)
        return mean

    def _require_no_spike(self, step: int, loss: float) -> None:
        """Stop before the weights change; those of the step before are saved."""
        rule, losses = self.config.stopping.spike, self.history.training
        if rule is None:
            return
        if not is_spike(losses, loss, rule):
            self.history.training = [*losses, loss][-rule.window :]
            return
        if self.saved_step != self.state.step:
            account = self.account(self.state.step) if self.account else {}
            self.state = self.state.model_copy(update={"account": account})
            self._save(wait=True)
        self.saver.wait()
        usual = sum(losses) / len(losses)
        raise RunError(
            f"the loss of step {step} is a spike: {loss:.3f}, and {usual:.3f} on average over the "
            f"{rule.window} steps before",
            where=self.saved,
            fix="The checkpoint there is of the last good step. Look at the data of this step, "
            "lower schedule.peak, or raise stopping.spike.above; the same command would end the "
            "same way.",
        )

    def _require_finite(self, step: int, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        self.saver.wait()
        kept = latest_checkpoint(self.out / CHECKPOINTS)
        raise RunError(
            f"the {what} of step {step} is {value}",
            where=kept or self.out,
            fix=f"{'The checkpoint there is whole. ' if kept else ''}Lower schedule.peak "
            f"({self.config.schedule.peak:g}), lengthen the warm-up, or check the data of that "
            "step; the same command would end the same way.",
        )
