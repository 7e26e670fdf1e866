"""Run a `TrainJob`: open the data, train, in one process or in every rank."""

from pathlib import Path
from typing import Any

from megatron_synth.blending import (
    BlendConfig,
    BlendedStreams,
    Budget,
    ChainedStreams,
    CorpusConfig,
    corpus_size,
    solve,
)
from megatron_synth.blending.sizes import require_names
from megatron_synth.config import ConfigError, parse_config
from megatron_synth.runs import Progress
from megatron_synth.runtime import ParallelConfig
from megatron_synth.tokens import Tokenizer
from megatron_synth.training.checkpoints import latest_checkpoint
from megatron_synth.training.config import TrainConfig
from megatron_synth.training.job import TrainJob, ValidationSet, model_of, training_of
from megatron_synth.training.loop import train
from megatron_synth.training.result import TrainResult
from megatron_synth.training.samples import Samples


def run_job(job: TrainJob, out: Path, progress: Progress, *, where: str) -> TrainResult:
    """Train, going on from the newest checkpoint in `out` where there is one.

    Args:
        job: What to do.
        out: Folder for `checkpoints/` and `metrics.jsonl`.
        progress: Told how far it is.
        where: Name of the job's file, for messages.

    Raises:
        ConfigError, DataError, RunError: As `train`, and as the plans and corpora do.
    """
    if job.pairs is not None:
        return _run_pairs(job, out, progress, where)
    chain = job.chain()
    training, model = training_of(job, chain, where), model_of(job, chain, where)
    corpora = chain.plans[-1].corpora
    require_names(
        job.data, [c.name for p in chain.plans for c in p.corpora], where=f"{where}: data"
    )
    going_on = job.branch_from or latest_checkpoint(out / "checkpoints")
    if chain.first_step and not going_on:
        raise ConfigError(
            f"the plans begin after step {chain.first_step:,}, and there is no checkpoint to go "
            "on from",
            where=out,
            fix="Give the plans of all phases, set branch_from, or --out of the run so far.",
        )
    return train(
        training,
        model,
        ChainedStreams(chain, job.data),
        out,
        progress,
        data_hash=chain.hash_at,
        validation={
            name: _windows(name, its, training.sequence_length)
            for name, its in job.validation.items()
        },
        init_from=job.init_from,
        init_optimizer=job.init_optimizer,
        branch_from=job.branch_from,
        account=chain.at,
        dataset_names=[c.name for c in corpora],
        dataset_streams=[c.stream for c in corpora],
        samples=_samples(job, training.parallel, where),
    )


def _run_pairs(job: TrainJob, out: Path, progress: Progress, where: str) -> TrainResult:
    from megatron_synth.training.pair_job import run_pairs

    training = parse_config(job.training, TrainConfig, where=f"{where}: training")
    return run_pairs(
        job,
        out,
        progress,
        where=where,
        validation={
            name: _windows(name, its, training.sequence_length)
            for name, its in job.validation.items()
        },
        samples=_samples(job, training.parallel, where),
    )


def _samples(job: TrainJob, parallel: ParallelConfig, where: str) -> Samples | None:
    if job.samples is None:
        return None
    if parallel.pipeline_parallel > 1 or parallel.context_parallel > 1:
        raise ConfigError(
            "samples are not taken from a model in pipeline stages, or from windows in pieces",
            where=f"{where}: samples",
            fix="Leave them out, or set training.pipeline_parallel and context_parallel to 1.",
        )
    assert job.tokenizer is not None, "TrainJob sees to it"
    tokenizer = Tokenizer.load(job.tokenizer)
    return Samples(
        prompts=tokenizer.encode_batch(job.samples.prompts),
        eos_id=tokenizer.eos_id,
        decode=tokenizer.decode,
        every=job.samples.every,
        tokens=job.samples.tokens,
    )


def _windows(name: str, its: ValidationSet, sequence_length: int) -> Any:
    """The first windows of an epoch of a corpus."""
    size = corpus_size(its.data)
    most = max(1, (size.tokens - 1) // sequence_length)
    blend = BlendConfig(
        budget=Budget(steps=min(its.windows or most, most)),
        sequence_length=sequence_length,
        global_batch_size=1,
        corpora={name: CorpusConfig(max_epochs=1)},
    )
    return BlendedStreams(solve(blend, {name: size}), {name: its.data})
