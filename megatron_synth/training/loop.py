"""The training loop."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from megatron.core import parallel_state

from megatron_synth.config import ConfigError, DataError
from megatron_synth.models import ModelConfig, build_model
from megatron_synth.models.specs import parts_in_use
from megatron_synth.runs import MetricsLog, Progress, get_logger
from megatron_synth.runtime import initialize, is_main_rank
from megatron_synth.training.batches import BatchPlan, BatchReader, SampleDataset
from megatron_synth.training.checkpoints import (
    CheckpointState,
    clear_leftovers,
    latest_checkpoint,
    load_checkpoint,
    read_state,
)
from megatron_synth.training.config import TrainConfig
from megatron_synth.training.evaluation import Evaluator
from megatron_synth.training.hardware import require_engine
from megatron_synth.training.history import History
from megatron_synth.training.metrics_record import Recorder
from megatron_synth.training.mirrors import Mirror, figures_of, open_mirrors, require_installed
from megatron_synth.training.optimizer import make_optimizer, wrap_for_training
from megatron_synth.training.result import TrainResult, result_of
from megatron_synth.training.resume import (
    check_resume,
    require_same_model,
    require_same_optimizer,
    resolve_dtype,
)
from megatron_synth.training.rules import is_saturated
from megatron_synth.training.samples import Samples
from megatron_synth.training.saving import CheckpointSaver, Retention
from megatron_synth.training.starting import load_start, require_checkpoint
from megatron_synth.training.steps import BEST, CHECKPOINTS, Steps
from megatron_synth.training.stopping import StopRequests, stop_signals
from megatron_synth.training.stragglers import Stragglers
from megatron_synth.training.watchdog import HangWatchdog

_log = get_logger(__name__)


def train(
    config: TrainConfig,
    model_config: ModelConfig,
    dataset: SampleDataset,
    out: Path,
    progress: Progress,
    *,
    data_hash: str | Callable[[int], str],
    validation: Mapping[str, SampleDataset] | None = None,
    init_from: Path | None = None,
    init_optimizer: Literal["reset", "keep"] = "reset",
    branch_from: Path | None = None,
    account: Callable[[int], dict[str, Any]] | None = None,
    dataset_names: Sequence[str] = (),
    dataset_streams: Sequence[str] = (),
    samples: Samples | None = None,
) -> TrainResult:
    """Train a model, going on from the newest checkpoint in `out` where there is one.

    Call it in one process, or in every rank under torchrun (rank 0 writes).

    Args:
        config: How to train.
        model_config: What to train.
        dataset: Windows; sample k of step t (from 1) is item (t - 1) * global_batch_size + k, less
            what a `batch_ramp` takes later.
        out: Folder for `checkpoints/` and `metrics.jsonl`.
        progress: Told the tokens done and the loss.
        data_hash: Identifies the data and its order, for example the blend plan's hash. Of a run
            in phases a function: the hash of the data that step `step` was trained on, for example
            `Chain.hash_at`. A checkpoint holds that of its step. Under a `batch_ramp` the plan's
            steps are meant, its whole batches; for `account` likewise.
        validation: Validation sets by name; every window of each is used.
        init_from: Checkpoint, or Hugging Face folder, whose weights a new run starts from. Not
            read where there is a checkpoint in `out` to go on from.
        init_optimizer: Whether the optimizer's state comes from there too, or starts anew.
        branch_from: Checkpoint folder to go on from as at a resume (steps, data and optimizer
            state), but in `out` and under another schedule: WSD's decay branch, for example. Not
            read where there is a checkpoint in `out`.
        account: Called with a step, for example `Ledger(plan).at`; what it gives, JSON, is in
            `state.json` of that step's checkpoint and, as `account`, in its record of the metrics.
        dataset_names: Name of each `dataset_id`, for the losses by dataset in the metrics.
        dataset_streams: Stream of each `dataset_id`, for the losses by stream.
        samples: Prompts to continue now and then, into `samples.jsonl`.

    Raises:
        ConfigError: The layout, batch or precision does not fit; the checkpoint to go on or to
            start from is of other data, another model or other settings; warm-up and decay do not
            fit the steps; there is no such validation set; a mirror's package is missing.
        DataError: The dataset is too short or its windows have another length.
        RunError: The loss, the gradient or a validation loss is not finite, the loss is a spike,
            the throughput too low, or a checkpoint could not be written; the last checkpoint
            stands.
        TrainingStoppedError: SIGTERM or SIGUSR1 came, or the hours are over; a checkpoint was
            saved.
    """
    began = time.monotonic()
    problem = config.schedule_in_steps.misfit(config.steps)
    if problem:
        raise ConfigError(problem, where="training.schedule", fix="Shorten them, or train longer.")
    if init_from is not None and branch_from is not None:
        raise ConfigError("init_from and branch_from are both set", fix="Set one of them.")
    plateau = config.stopping.plateau
    if plateau is not None and plateau.epoch_steps is None:
        raise ConfigError("epoch_steps must be set", where="training.stopping.plateau")
    require_installed(config.logging)
    require_engine(config)
    initialize(config.parallel, seed=config.seed, threads=config.cpu_threads)
    run = _Run(config, model_config, dataset, out, data_hash, validation or {})
    run.init_from, run.init_optimizer, run.branch_from = init_from, init_optimizer, branch_from
    run.account, run.names, run.streams = account, dataset_names, dataset_streams
    run.samples = samples
    return run.go(progress, began)


class _Run:
    """One call of `train`."""

    init_from: Path | None = None
    init_optimizer: Literal["reset", "keep"] = "reset"
    branch_from: Path | None = None
    account: Callable[[int], dict[str, Any]] | None = None
    names: Sequence[str] = ()
    streams: Sequence[str] = ()
    samples: Samples | None = None

    def __init__(
        self,
        config: TrainConfig,
        model_config: ModelConfig,
        dataset: SampleDataset,
        out: Path,
        data_hash: str | Callable[[int], str],
        validation: Mapping[str, SampleDataset],
    ) -> None:
        self.config, self.model_config = config, model_config
        hash_at = data_hash if callable(data_hash) else lambda _: data_hash
        self.data_hash = lambda step: hash_at(config.batch_sizes.batches(step))
        self.dataset = dataset
        self.out, self.checkpoints = out, out / CHECKPOINTS
        self.world_size = dist.get_world_size()
        self.dtype = resolve_dtype(config)
        config.micro_batches(self.world_size)  # refuses what cannot be shared evenly
        needed = config.batch_sizes.through(config.steps)
        if len(dataset) < needed:
            raise DataError(
                f"the data has {len(dataset)} windows, {config.steps} steps of "
                f"{config.global_batch_size} {'and less ' if config.batch_ramp else ''}need "
                f"{needed}",
                where="training data",
                fix="Lower the steps, or plan the blend for more tokens.",
            )
        self.plan = BatchPlan(
            global_batch_size=config.global_batch_size,
            micro_batch_size=config.micro_batch_size,
            data_parallel=parallel_state.get_data_parallel_world_size(),
            data_rank=parallel_state.get_data_parallel_rank(),
        )
        self.evaluator = Evaluator(config, self.plan, validation)

    def go(self, progress: Progress, began: float) -> TrainResult:
        if is_main_rank():
            clear_leftovers(self.checkpoints)
        latest = latest_checkpoint(self.checkpoints)
        state = self._first_state(latest)
        stopping, path = self.config.stopping, self.out / "metrics.jsonl"
        history = History(path, state.step, stopping)
        ended = stopping.plateau is not None and is_saturated(history.epochs)
        if latest and (ended or state.step == self.config.steps):
            return self._result(latest, state, history)
        steps = self._build(latest, state, history)
        dist.barrier()  # nobody writes before all have looked at what is there
        metrics, mirrors, texts = None, list[Mirror](), None
        if is_main_rank():
            self.out.mkdir(parents=True, exist_ok=True)
            metrics = MetricsLog(path, resume_step=state.step)
            mirrors = open_mirrors(self.config.logging, self.out, state.step)
            if self.samples:
                texts = MetricsLog(self.out / "samples.jsonl", resume_step=state.step)
        done = self.config.tokens_through(state.step)
        progress.phase("training", self.config.tokens, "tokens", done=done)
        watchdog = HangWatchdog(stopping.hang_minutes, self.out, dist.get_rank())
        try:
            with stop_signals() as signals, watchdog:
                asked = StopRequests(stopping, signals, began)
                for step, record in steps.run(asked, watchdog):
                    if metrics:
                        metrics.write(step, **record)
                    for mirror in mirrors:
                        mirror.write(step, figures_of(record))
                    note = f"loss {record['loss']:.2f}"
                    progress.update(self.config.tokens_through(step), note=note)
                    self._sample(steps.model, step, texts)
                    watchdog.beat()
        finally:
            if metrics:
                metrics.close()
            if texts:
                texts.close()
            for mirror in mirrors:
                mirror.close()
            steps.saver.wait()
        assert steps.saved is not None
        return self._result(steps.saved, steps.state, history)

    def _first_state(self, latest: Path | None) -> CheckpointState:
        """The state before the first step of this call."""
        source = latest or self.branch_from
        if source is None:
            return self._fresh_state(0)
        before = read_state(source)
        now = self._fresh_state(before.step)
        return check_resume(before, now, source, branch=latest is None)

    def _build(self, latest: Path | None, state: CheckpointState, history: History) -> Steps:
        config = self.config
        model = build_model(
            self.model_config,
            config.parallel,
            sequence_length=config.sequence_length,
            seed=config.seed,
            dtype=self.dtype,
            fp8=config.fp8,
            moe_dispatcher=config.moe_dispatcher,
        )
        source = latest or self.branch_from
        keep = self.init_optimizer == "keep"
        if source is None and self.init_from is not None:
            if keep:
                require_checkpoint(self.init_from, "init_optimizer: keep needs its optimizer too")
                theirs = read_state(self.init_from)
                require_same_model(theirs.model, self.model_config, self.init_from)
                require_same_optimizer(theirs, self._fresh_state(0), self.init_from)
                source = self.init_from
            else:
                load_start(self.init_from, model, self.model_config)
        wrapped = wrap_for_training(
            model,
            distributed_optimizer=config.optimizer.distributed,
            recompute=config.recompute,
            overlap=config.overlap,
        )
        stragglers = Stragglers(model.config.finalize_model_grads_func)
        model.config.finalize_model_grads_func = stragglers.finalize
        optimizer = make_optimizer(wrapped, config.optimizer, config.schedule.peak)
        if source is not None:
            load_checkpoint(source, model, optimizer)
            _log.info("going on from %s", source)
        if is_main_rank():
            _log.info("%s", parts_in_use())
        wrapped.train()
        return Steps(
            config=config,
            out=self.out,
            model=wrapped,
            bare_model=model,
            optimizer=optimizer,
            saver=CheckpointSaver(
                self.checkpoints,
                keep=Retention(config.keep_checkpoints, config.keep_every),
                background=config.save_in_background,
            ),
            reader=BatchReader(self.dataset, self.plan, config.sequence_length, config.batch_ramp),
            evaluator=self.evaluator,
            recorder=Recorder(
                config, self.model_config, model, self.names, self.streams, self.dtype
            ),
            history=history,
            stragglers=stragglers,
            data_hash=self.data_hash,
            account=self.account,
            state=state,
            saved=latest,
            saved_step=state.step if latest else None,
        )

    def _sample(self, model: Any, step: int, texts: MetricsLog | None) -> None:
        samples = self.samples
        if samples is None or (step % samples.every and step != self.config.steps):
            return
        for sample in samples.taken(model, self.config.sequence_length):
            if texts:
                texts.write(step, **sample)
                _log.info("step %d: %s|%s", step, sample["prompt"], sample["text"])

    def _fresh_state(self, step: int) -> CheckpointState:
        """What a run is before its first step; `data_hash` is what it has at step `step`."""
        return CheckpointState(
            step=0,
            samples=0,
            model=self.model_config,
            train=self.config,
            data_hash=self.data_hash(step),
            ranks=self.world_size,
            seconds=0.0,
            loss=0.0,
            validation={},
            account={},
            dtype=str(self.dtype).removeprefix("torch."),
            init_from=str(self.init_from) if self.init_from else None,
        )

    def _result(self, checkpoint: Path, state: CheckpointState, history: History) -> TrainResult:
        return result_of(
            checkpoint,
            state,
            self.model_config,
            saturated=self.config.stopping.plateau is not None and is_saturated(history.epochs),
            best=self.out / BEST,
        )
