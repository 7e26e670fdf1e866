"""NeMo Curator stages: generate, read, filter, write. They drop into any Curator pipeline.

`GenerationStage` turns a `ShardTask` into files of bounded size; `ReadStage` turns each into a
`DocumentBatch` whose columns are the fields of `corpus.Document` (mappings as JSON strings) and
`source_text`; `FilterStage` adds `drop_reason`; `WriteStage` writes kept and dropped documents to
files of their own. Stages of other people go between reading and writing: what they remove from
the batch is gone, what they write into `drop_reason` counts.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import DocumentBatch, FileGroupTask, Task

from megatron_synth.config import ConfigError, MegatronSynthError
from megatron_synth.corpus import Document, document_writer
from megatron_synth.engines import Engine, RequestLog, gpus_of
from megatron_synth.runs import write_json
from megatron_synth.synthesis.config import FilterConfig, SynthesisConfig
from megatron_synth.synthesis.contract import Method
from megatron_synth.synthesis.filters import (
    NO_CONTEXT,
    FilterContext,
    drop_reasons,
    packed_tokens,
)
from megatron_synth.synthesis.joining import nodes_of
from megatron_synth.synthesis.places import Generated, Places
from megatron_synth.synthesis.shard import Shard
from megatron_synth.synthesis.tables import COLUMNS, SCHEMA, read_part, write_parts

_MAPPINGS = ("sampling", "token_counts", "scores", "metadata")


@dataclass
class ShardTask(Task[dict[str, Any]]):
    """A shard to be made; `data["shard"]` is its number."""

    data: dict[str, Any] = field(default_factory=dict)

    @property
    def num_items(self) -> int:
        """One: itself."""
        return 1

    def validate(self) -> bool:
        """Whether it names a shard."""
        return "shard" in self.data

    def get_deterministic_id(self) -> str:
        """The same id in every run."""
        return f"shard-{self.data['shard']:05d}"


class GenerationStage(ProcessingStage[ShardTask, FileGroupTask]):
    """Makes one shard: asks the engine in this actor, commits each answer to the shard's log.

    Its documents go to files, since a shard may be larger than memory, and a part that is filtered
    and written before a kill need not be made again.

    Args:
        config: The step's settings.
        places: Where logs and progress go.
        run: Names everything that answers depend on (see `RequestLog`).
        make_method: Called once in each worker.
        make_engine: Called in each worker when its first request is due.
        cpus: What Ray reserves for a worker.
        context: What the filters know of the method.
        sample: Make only so many documents of each shard (see `Shard`).
    """

    name = "synthesis_generate"
    batch_size = 1

    def __init__(
        self,
        config: SynthesisConfig,
        places: Places,
        run: str,
        make_method: Callable[[], Method],
        make_engine: Callable[[], Engine],
        cpus: float = 1.0,
        context: FilterContext = NO_CONTEXT,
        sample: int | None = None,
    ) -> None:
        self.context = context
        self._sample = sample
        self.resources = Resources(cpus=cpus, gpus=gpus_of_an_engine(config))
        self._config = config
        self._places = places
        self._run = run
        self._make_method = make_method
        self._make_engine = make_engine
        self._method: Method | None = None
        self._engine: Engine | None = None

    def inputs(self) -> tuple[list[str], list[str]]:
        """A task that names a shard."""
        return ["data"], []

    def outputs(self) -> tuple[list[str], list[str]]:
        """Files for `ReadStage`."""
        return ["data"], []

    def num_workers(self) -> int | None:
        """As many engines as the settings say, never more than shards."""
        return min(self._config.workers, self._config.shards)

    def ray_stage_spec(self) -> dict[str, Any]:
        """An actor that holds the engine; a worker that dies is started anew a few times."""
        restarts = self._config.ray.worker_restarts
        remote: dict[str, Any] = {"max_restarts": restarts, "max_task_retries": restarts}
        if self._config.ray.address is not None:
            remote["scheduling_strategy"] = "SPREAD"  # engines get in each other's way
        return {"is_actor_stage": True, "ray_remote_args": remote}

    def setup(self, worker_metadata: Any = None) -> None:
        """Open the seeds. The engine starts with the first request: a finished log needs none."""
        self._method = self._make_method()

    def teardown(self) -> None:
        """End the engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def process(self, task: ShardTask) -> list[FileGroupTask]:
        """Bring the shard to its target; its documents, in order, in parts that are not done."""
        number = int(task.data["shard"])
        try:
            generated = self._places.read_generated(number) or self._generate(number)
        except MegatronSynthError as error:
            # Ray wraps what a worker raises; the driver reads the plain error from this file.
            kind = type(error).__name__
            write_json(
                self._places.error(number),
                {"kind": kind, "what": error.what, "where": error.where, "fix": error.fix},
            )
            raise
        return [
            FileGroupTask(
                dataset_name=task.dataset_name,
                data=[str(self._places.table(number, part))],
                _metadata={**task.data, "part": part},
            )
            for part in self._places.open_parts(number, generated.parts)
        ]

    def _generate(self, number: int) -> Generated:
        method = self._method or self._make_method()
        with RequestLog(self._places.log(number), self._run) as log:
            state = self._places.state(number)
            shard = Shard(self._config, number, method, log, state, self.context, self._sample)
            shard.run(self._start_engine)
            parts = write_parts(shard.product(), self._places, number)
            generated = Generated(parts, len(log), log.asked_again)
        write_json(self._places.generated(number), asdict(generated))
        return generated

    def _start_engine(self) -> Engine:
        if self._engine is None:
            self._engine = self._make_engine()
        return self._engine


class ReadStage(ProcessingStage[FileGroupTask, DocumentBatch]):
    """Reads one part of a shard."""

    name = "synthesis_read"
    resources = Resources(cpus=1.0)

    def inputs(self) -> tuple[list[str], list[str]]:
        """A file of `GenerationStage`."""
        return ["data"], []

    def outputs(self) -> tuple[list[str], list[str]]:
        """Fields of `Document`, and the source's text."""
        return ["data"], list(SCHEMA.names)

    def process(self, task: FileGroupTask) -> DocumentBatch:
        """The documents, in order."""
        return DocumentBatch(
            dataset_name=task.dataset_name,
            data=read_part(Path(task.data[0])),
            _metadata=task._metadata,
            _stage_perf=task._stage_perf,
        )


class FilterStage(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Adds `drop_reason`: null where the document is kept (see `filters.REASONS`)."""

    name = "synthesis_filter"
    resources = Resources(cpus=1.0)

    def __init__(self, config: FilterConfig, context: FilterContext = NO_CONTEXT) -> None:
        self._config = config
        self._context = context

    def inputs(self) -> tuple[list[str], list[str]]:
        """Documents with the text that each was made from."""
        return ["data"], ["text", "source_text"]

    def outputs(self) -> tuple[list[str], list[str]]:
        """The same and the reason."""
        return ["data"], ["text", "drop_reason"]

    def process(self, task: DocumentBatch) -> DocumentBatch:
        """Judge every document of the batch; a reason that is there already stands."""
        rows = task.to_pyarrow().to_pylist()
        reasons: list[str | None] = [row.get("drop_reason") for row in rows]
        left = [n for n, reason in enumerate(reasons) if reason is None]
        found = drop_reasons(
            self._config,
            [_document(rows[n]) for n in left],
            [rows[n]["source_text"] or "" for n in left],
            self._context,
        )
        for n, reason in zip(left, found, strict=True):
            reasons[n] = reason
        table = pa.Table.from_pylist(rows, schema=SCHEMA).append_column(
            "drop_reason", pa.array(reasons, pa.string())
        )
        return DocumentBatch(
            dataset_name=task.dataset_name,
            data=table,
            _metadata=task._metadata,
            _stage_perf=task._stage_perf,
        )


class WriteStage(ProcessingStage[DocumentBatch, FileGroupTask]):
    """Writes kept and dropped documents of a part of a shard, then its counts."""

    name = "synthesis_write"
    resources = Resources(cpus=1.0)

    def __init__(self, places: Places) -> None:
        self._places = places

    def inputs(self) -> tuple[list[str], list[str]]:
        """Documents with the filters' verdict."""
        return ["data"], ["text", "drop_reason"]

    def process(self, task: DocumentBatch) -> FileGroupTask:
        """Write the files; the counts come last."""
        place = int(task._metadata["shard"]), int(task._metadata.get("part", 0))
        counts: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        kept_path, dropped_path = self._places.kept(*place), self._places.dropped(*place)
        with document_writer(kept_path) as kept_file, document_writer(dropped_path) as rest:
            for row in task.to_pyarrow().to_pylist():
                document = _document(row)
                reason = row["drop_reason"]
                tokens = document.token_counts or {}
                counts["requests"] += document.metadata.get("requests", 1)
                counts["prompt_tokens"] += tokens.get("prompt", 0)
                counts["output_tokens"] += tokens.get("output", 0)
                if reason is None:
                    kept_file.write(document)
                    counts["documents"] += 1
                    counts["tokens"] += packed_tokens(document)
                    counts["replacement_characters"] += "\ufffd" in document.text
                else:
                    dropped[reason] += 1
                    rest.write(_with_reason(document, reason))
        write_json(self._places.counts(*place), {**counts, "dropped": dropped})
        self._places.table(*place).unlink(missing_ok=True)
        return FileGroupTask(
            dataset_name=task.dataset_name, data=[str(kept_path), str(dropped_path)]
        )


def _document(row: dict[str, Any]) -> Document:
    """Undo `to_row`, without refusing the NUL that a filter has to see."""
    values = {name: row[name] for name in COLUMNS}
    for name in _MAPPINGS:
        values[name] = json.loads(values[name]) if values[name] else None
    return Document(**{**values, "metadata": values["metadata"] or {}})


def _with_reason(document: Document, reason: str) -> Document:
    return replace(
        document,
        text=document.text.replace("\0", "\u2400"),  # a NUL could not be read back
        metadata={**document.metadata, "drop_reason": reason},
    )


def gpus_of_an_engine(config: SynthesisConfig) -> float:
    """GPUs that Ray must reserve for an engine, 0 without GPUs or where it runs elsewhere.

    Raises:
        ConfigError: More are asked for than there are: Ray would wait for ever.
        RunError: There is no cluster at `ray.address`.
    """
    each = gpus_of(config.engine)
    if not each:
        return 0.0
    there = _gpus_of_nodes(config)
    if not any(there):
        return 0.0
    engines = min(config.workers, config.shards)
    if engines > sum(gpus // each for gpus in there):
        raise ConfigError(
            f"{engines} engines of {each} GPUs each are asked for, but "
            f"{' + '.join(map(str, there))} are here",
            where="synthesis.workers, synthesis.engine.tensor_parallel",
            fix="Lower one of them.",
        )
    return float(each)


def _gpus_of_nodes(config: SynthesisConfig) -> list[int]:
    if config.ray.address is not None:
        return [int(node.gpus) for node in nodes_of(config.ray.address)]
    import torch

    return [torch.cuda.device_count()]
