"""Synthesizer tuning as a `TrainJob`: windows of pairs in the place of plans."""

from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_synth.blending import PairWindows
from megatron_synth.blending.pair_split import TRAINING, VALIDATION, split_pairs
from megatron_synth.config import ConfigError, parse_config
from megatron_synth.models import ModelConfig
from megatron_synth.packing.beside import info_of
from megatron_synth.packing.reader import IndexedReader
from megatron_synth.runs import Progress, get_logger
from megatron_synth.runtime import initialize, is_main_rank
from megatron_synth.tokens import Tokenizer
from megatron_synth.training.config import TrainConfig
from megatron_synth.training.job import PairData, TrainJob
from megatron_synth.training.loop import train
from megatron_synth.training.result import TrainResult
from megatron_synth.training.samples import Samples
from megatron_synth.training.starting import model_at

HELD_OUT_PAIRS = "held_out_pairs"
"""Name of the validation set of held-out pairs in the metrics."""
_FOLDER = "pairs"

_log = get_logger(__name__)


def run_pairs(
    job: TrainJob,
    out: Path,
    progress: Progress,
    *,
    where: str,
    validation: dict[str, Any],
    samples: Samples | None,
) -> TrainResult:
    """Tune a synthesizer: loss on the second document of each pair alone (SBP, A.2).

    Args:
        job: With `pairs` and `tokenizer`.
        out: Folder for `checkpoints/`, `metrics.jsonl` and `pairs/` (the split).
        progress: Told how far it is.
        where: Name of the job's file, for messages.
        validation: Further validation sets, by name.
        samples: See `train`.

    Raises:
        ConfigError: The tokenizer has no separator, or is not that of the corpus.
        DataError: Files are missing, or no pair fits.
    """
    pairs = job.pairs
    assert pairs is not None
    assert job.tokenizer is not None, "TrainJob sees to it"
    training = parse_config(job.training, TrainConfig, where=f"{where}: training")
    tokenizer = Tokenizer.load(job.tokenizer)
    _check_tokenizer(pairs, tokenizer, job.tokenizer)
    initialize(training.parallel, seed=training.seed, threads=training.cpu_threads)
    folder = out / _FOLDER
    if is_main_rank():
        folder.mkdir(parents=True, exist_ok=True)
        counts = split_pairs(
            pairs.file, folder, validation_pairs=pairs.validation_pairs, seed=pairs.seed
        )
        held = [counts["validation_pairs"]]
    else:
        held = [0]
    dist.broadcast_object_list(held, src=0)

    def windows_of(name: str, number: int | None) -> PairWindows:
        return PairWindows(
            pairs.data,
            folder / name,
            sequence_length=training.sequence_length,
            eos_id=tokenizer.eos_id,
            separator_id=tokenizer.separator_id,
            pairs_per_window=pairs.pairs_per_window,
            seed=pairs.seed,
            samples=number,
        )

    windows = windows_of(TRAINING, training.batch_sizes.through(training.steps))
    held_out = {HELD_OUT_PAIRS: windows_of(VALIDATION, None)} if held[0] else {}
    _log.info("%.2f passes over %d pairs", len(windows) / windows.windows, windows.pairs)
    return train(
        training,
        _model(job, tokenizer, where),
        windows,
        out,
        progress,
        data_hash=windows.hash,
        validation={**held_out, **validation},
        init_from=job.init_from,
        init_optimizer=job.init_optimizer,
        branch_from=job.branch_from,
        samples=samples,
    )


def _check_tokenizer(pairs: PairData, tokenizer: Tokenizer, name: str) -> None:
    if tokenizer.separator_id == tokenizer.eos_id:
        raise ConfigError(
            "the tokenizer has no <|separator|>, which stands between the two documents",
            where=name,
            fix="Add that special token to it and to the model, or train one (`tokenizer` of an "
            "experiment), which has it.",
        )
    info = info_of(IndexedReader(pairs.data))
    if info is not None and info.tokenizer != tokenizer.fingerprint:
        raise ConfigError(
            f"the corpus {pairs.data} was packed with another tokenizer",
            where=name,
            fix="Give the tokenizer that it was packed with, or pack it anew.",
        )


def _model(job: TrainJob, tokenizer: Tokenizer, where: str) -> ModelConfig:
    start = job.init_from or job.branch_from
    tree = dict(job.model)
    if not tree and start is not None:
        tree = model_at(start).model_dump(mode="json")
    if not tree:
        raise ConfigError(
            "says nothing of the model",
            where=f"{where}: model",
            fix="Set init_from: a synthesizer is tuned from a pretrained model.",
        )
    tree.setdefault("vocab_size", tokenizer.vocab_size)
    model = parse_config(tree, ModelConfig, where=f"{where}: model")
    if model.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"the model's vocabulary is smaller than the tokenizer's: vocab_size is "
            f"{model.vocab_size:,}, the tokenizer has {tokenizer.vocab_size:,} ids",
            where=f"{where}: model.vocab_size",
            fix="Use the tokenizer that the model is made for.",
        )
    return model
