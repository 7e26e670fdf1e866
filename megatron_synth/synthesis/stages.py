"""NeMo Curator stages: generate, filter, write. They drop into any Curator pipeline of documents.

`GenerationStage` turns a `ShardTask` into a `DocumentBatch` whose columns are the fields of
`corpus.Document` (mappings as JSON strings) and `source_text`; `FilterStage` adds `drop_reason`;
`WriteStage` writes kept and dropped documents to files of their own. Stages of other people go
between them: what they remove from the batch is gone, what they write into `drop_reason` counts.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import DocumentBatch, FileGroupTask, Task

from megatron_synth.config import ConfigError, MegatronSynthError
from megatron_synth.corpus import Document, document_writer
from megatron_synth.corpus.document import to_row
from megatron_synth.engines import Engine, RequestLog, gpus_of
from megatron_synth.runs import write_json
from megatron_synth.synthesis.config import FilterConfig, SynthesisConfig
from megatron_synth.synthesis.contract import Method
from megatron_synth.synthesis.filters import (
    NO_CONTEXT,
    FilterContext,
    drop_reason,
    packed_tokens,
)
from megatron_synth.synthesis.places import Places
from megatron_synth.synthesis.shard import Shard

_INTEGERS = {"generation", "round", "seed"}
_MAPPINGS = ("sampling", "token_counts", "scores", "metadata")
_COLUMNS = tuple(name for name in to_row(Document("", "")) if name != "parts")  # one text each
_SCHEMA = pa.schema(
    [(name, pa.int64() if name in _INTEGERS else pa.string()) for name in _COLUMNS]
    + [("source_text", pa.string())]
)


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


class GenerationStage(ProcessingStage[ShardTask, DocumentBatch]):
    """Makes one shard: asks the engine in this actor, commits each answer to the shard's log.

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
        """Fields of `Document`, and the source's text."""
        return ["data"], list(_SCHEMA.names)

    def num_workers(self) -> int | None:
        """As many engines as the settings say, never more than shards."""
        return min(self._config.workers, self._config.shards)

    def ray_stage_spec(self) -> dict[str, Any]:
        """An actor that holds the engine; a worker that dies is started anew a few times."""
        restarts = self._config.ray.worker_restarts
        return {
            "is_actor_stage": True,
            "ray_remote_args": {"max_restarts": restarts, "max_task_retries": restarts},
        }

    def setup(self, worker_metadata: Any = None) -> None:
        """Open the seeds. The engine starts with the first request: a finished log needs none."""
        self._method = self._make_method()

    def teardown(self) -> None:
        """End the engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def process(self, task: ShardTask) -> DocumentBatch:
        """Bring the shard to its target; its documents, kept and dropped, in order."""
        number = int(task.data["shard"])
        try:
            rows = self._rows(number)
        except MegatronSynthError as error:
            # Ray wraps what a worker raises; the driver reads the plain error from this file.
            kind = type(error).__name__
            write_json(
                self._places.error(number),
                {"kind": kind, "what": error.what, "where": error.where, "fix": error.fix},
            )
            raise
        table = pa.Table.from_pylist(rows, schema=_SCHEMA)
        return DocumentBatch(dataset_name=task.dataset_name, data=table, _metadata=task.data)

    def _rows(self, number: int) -> list[dict[str, Any]]:
        method = self._method or self._make_method()
        with RequestLog(self._places.log(number), self._run) as log:
            state = self._places.state(number)
            shard = Shard(self._config, number, method, log, state, self.context, self._sample)
            shard.run(self._start_engine)
            return [
                {**to_row(outcome.document), "source_text": outcome.source_text}
                for outcome in shard.product()
            ]

    def _start_engine(self) -> Engine:
        if self._engine is None:
            self._engine = self._make_engine()
        return self._engine


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
        reasons = [
            row.get("drop_reason")
            or drop_reason(self._config, _document(row), row["source_text"] or "", self._context)
            for row in rows
        ]
        table = pa.Table.from_pylist(rows, schema=_SCHEMA).append_column(
            "drop_reason", pa.array(reasons, pa.string())
        )
        return DocumentBatch(
            dataset_name=task.dataset_name,
            data=table,
            _metadata=task._metadata,
            _stage_perf=task._stage_perf,
        )


class WriteStage(ProcessingStage[DocumentBatch, FileGroupTask]):
    """Writes kept and dropped documents of a shard, then its counts."""

    name = "synthesis_write"
    resources = Resources(cpus=1.0)

    def __init__(self, places: Places) -> None:
        self._places = places

    def inputs(self) -> tuple[list[str], list[str]]:
        """Documents with the filters' verdict."""
        return ["data"], ["text", "drop_reason"]

    def process(self, task: DocumentBatch) -> FileGroupTask:
        """Write the files; the counts come last."""
        number = int(task._metadata["shard"])
        counts: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        kept_path, dropped_path = self._places.kept(number), self._places.dropped(number)
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
        write_json(self._places.counts(number), {**counts, "dropped": dropped})
        return FileGroupTask(
            dataset_name=task.dataset_name, data=[str(kept_path), str(dropped_path)]
        )


def _document(row: dict[str, Any]) -> Document:
    """Undo `to_row`, without refusing the NUL that a filter has to see."""
    values = {name: row[name] for name in _COLUMNS}
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
    """
    import torch

    there = torch.cuda.device_count()
    each = gpus_of(config.engine)
    if not there or not each:
        return 0.0
    if each * min(config.workers, config.shards) > there:
        raise ConfigError(
            f"{config.workers} engines of {each} GPUs each are asked for, but {there} are here",
            where="synthesis.workers, synthesis.engine.tensor_parallel",
            fix="Lower one of them.",
        )
    return float(each)
