"""Run the stages: on Ray with Curator's executor, or one after the other right here."""

import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from megatron_synth.config import ConfigError, DataError, MegatronSynthError, RunError
from megatron_synth.runs import get_logger
from megatron_synth.synthesis.cluster import local_ray
from megatron_synth.synthesis.config import SynthesisConfig
from megatron_synth.synthesis.joining import joined_ray
from megatron_synth.synthesis.places import Places
from megatron_synth.synthesis.stages import (
    FilterStage,
    GenerationStage,
    ReadStage,
    ShardTask,
    WriteStage,
)

_LOG = get_logger(__name__)

_ERROR_LINE = re.compile(r"^[\w.]*(?:Error|Exception)\b.*$", re.MULTILINE)
_KINDS: dict[str, type[MegatronSynthError]] = {
    kind.__name__: kind for kind in (ConfigError, DataError, RunError)
}


def run_stages(
    config: SynthesisConfig, places: Places, generation: GenerationStage, shards: list[int]
) -> None:
    """Generate, filter and write `shards`.

    Raises:
        MegatronSynthError: What ended a shard, as the worker raised it.
        RunError: The pipeline itself failed.
    """
    tasks: list[Any] = [ShardTask("synthesis", {"shard": number}) for number in shards]
    for number in shards:
        places.error(number).unlink(missing_ok=True)
    stages = [
        generation,
        ReadStage(),
        FilterStage(config.filters, generation.context),
        WriteStage(places),
    ]
    if config.ray.executor == "inline":
        _run_inline(stages, tasks)
        return
    # Loading Ray Data sets up its logging, which is to be quieted.
    from nemo_curator.backends.ray_data import RayDataExecutor
    from nemo_curator.pipeline import Pipeline

    with _ray(config, places, generation, shards) as without_head, _quiet_curator():
        pipeline = Pipeline(name="synthesis", stages=list(stages))
        try:
            pipeline.run(RayDataExecutor(ignore_head_node=without_head), initial_tasks=tasks)
        except Exception as error:
            raise (_worker_error(places, shards) or _pipeline_error(error)) from error


def _ray(
    config: SynthesisConfig, places: Places, generation: GenerationStage, shards: list[int]
) -> AbstractContextManager[bool]:
    engines = min(config.workers, len(shards))
    if config.ray.address is not None:
        return joined_ray(config.ray.address, places.out, engines, generation.resources.gpus)
    record = places.ray(shards[0] % (config.ray.slurm_array or 1))
    return local_ray(config.ray, record, engines)


def _run_inline(stages: list[Any], tasks: list[Any]) -> None:
    from nemo_curator.backends.base import BaseStageAdapter

    adapters = [BaseStageAdapter(stage) for stage in stages]
    try:
        for stage in stages:
            stage.setup()
        for task in tasks:
            for part in adapters[0].process_batch([task]):  # each on its own: one in memory
                current = [part]
                for adapter in adapters[1:]:
                    current = adapter.process_batch(current)
    finally:
        for stage in stages:
            stage.teardown()


def _worker_error(places: Places, shards: list[int]) -> MegatronSynthError | None:
    for number in shards:
        path = places.error(number)
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            return _KINDS.get(found["kind"], RunError)(
                found["what"], where=found["where"], fix=found["fix"]
            )
    return None


def _pipeline_error(error: Exception) -> RunError:
    # Ray puts the worker's traceback into the message; the first error in it is the cause.
    cause = _ERROR_LINE.search(str(error))
    return RunError(
        f"the pipeline failed: {cause[0] if cause else type(error).__name__}",
        fix="Finished requests are in the logs: run the same command again to go on. If a worker "
        "died without a word, memory is the usual cause (synthesis.engine.kv_cache_gb).",
    )


@contextmanager
def _quiet_curator() -> Iterator[None]:
    """Curator and Ray tell every step of their work on stderr; errors reach us as exceptions."""
    from loguru import logger

    logger.disable("nemo_curator")
    loggers = [logging.getLogger(name) for name in ("ray.data", "ray._private.worker")]
    levels = [found.level for found in loggers]
    for found in loggers:
        found.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*ray_remote_args.* is deprecated")
            yield
    finally:
        logger.enable("nemo_curator")
        for found, level in zip(loggers, levels, strict=True):
            found.setLevel(level)
