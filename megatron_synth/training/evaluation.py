"""Validation losses in the course of training."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from megatron_synth.config import ConfigError, DataError
from megatron_synth.training.batches import BatchPlan, SampleDataset, read_batch
from megatron_synth.training.config import TrainConfig
from megatron_synth.training.forward import run_batch


class Evaluator:
    """Takes the loss of each validation set when it is due; every rank calls it.

    Args:
        config: How the run trains.
        plan: How batches are cut.
        validation: The sets, by name.

    Raises:
        ConfigError: A setting names a set that there is not.
    """

    def __init__(
        self, config: TrainConfig, plan: BatchPlan, validation: Mapping[str, SampleDataset]
    ) -> None:
        self.config, self.plan, self.validation = config, plan, validation
        plateau = config.stopping.plateau
        asked = {"eval_intervals": [*config.eval_intervals]}
        asked["stopping.plateau.validation"] = [plateau.validation] if plateau else []
        for where, names in asked.items():
            unknown = [name for name in names if name not in validation]
            if unknown:
                raise ConfigError(
                    f"there is no validation set {unknown[0]!r}",
                    where=f"training.{where}",
                    fix=f"Validation sets: {', '.join(validation) or 'none are given'}.",
                )

    def due(self, step: int) -> list[str]:
        """The sets whose loss is taken after step `step`: all after the last one."""
        config, plateau = self.config, self.config.stopping.plateau
        return [
            name
            for name in self.validation
            if step == config.steps
            or step % config.eval_intervals.get(name, config.eval_every) == 0
            or (plateau and name == plateau.validation and step % (plateau.epoch_steps or 1) == 0)
        ]

    def measure(self, model: Any, name: str, after_batch: Callable[[], None]) -> float:
        """Mean token loss over every window of the set `name`.

        Raises:
            DataError: Every token of the set is masked.
        """
        config, dataset = self.config, self.validation[name]
        model.eval()
        nll = tokens = 0.0
        for first in range(0, len(dataset), config.global_batch_size):
            batch = read_batch(dataset, self.plan, first, config.sequence_length)
            with torch.no_grad():
                loss = run_batch(
                    model,
                    batch,
                    global_batch_size=config.global_batch_size,
                    sequence_length=config.sequence_length,
                    train=False,
                )
            nll += float(loss.nll.sum())
            tokens += float(loss.tokens.sum())
            after_batch()
        model.train()
        if not tokens:
            raise DataError("a validation set has no unmasked token", where=f"validation: {name}")
        return nll / tokens
