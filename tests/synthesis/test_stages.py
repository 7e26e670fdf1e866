"""The Curator stages by themselves: what other people's stages between them may rely on."""

import json
from contextlib import nullcontext

import pyarrow as pa
import pytest
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.tasks import DocumentBatch
from scripted import honest_text

from megatron_synth.config import ConfigError
from megatron_synth.corpus import Document, read_documents
from megatron_synth.corpus.document import to_row
from megatron_synth.synthesis import FilterConfig, SynthesisConfig
from megatron_synth.synthesis.joining import Node
from megatron_synth.synthesis.places import Places
from megatron_synth.synthesis.stages import (
    FilterStage,
    GenerationStage,
    ReadStage,
    ShardTask,
    WriteStage,
)


def batch(documents: list[Document], **columns: list[str | None]) -> DocumentBatch:
    table = pa.Table.from_pylist(
        [{**to_row(d), "source_text": honest_text("source")} for d in documents]
    )
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, pa.string()))
    return DocumentBatch(dataset_name="d", data=table, _metadata={"shard": 0})


def make(key: str, **changes: object) -> Document:
    fields = {
        "id": key,
        "text": honest_text(key),
        "source_id": "s",
        "seed": 2**63 - 1,
        "generation": 0,
        "finish_reason": "stop",
        "token_counts": {"prompt": 5, "output": 61, "text": 60},
        "sampling": {"top_p": 0.9},
        "metadata": {"request": 3},
    }
    return Document(**{**fields, **changes})


def test_they_are_curator_stages():
    for stage in (GenerationStage, ReadStage, FilterStage, WriteStage):
        assert issubclass(stage, ProcessingStage)


def test_the_filter_adds_its_reason_and_leaves_the_rest_alone():
    documents = [make("a"), make("b", text="\0" + honest_text("b")), make("c", text="")]
    result = FilterStage(FilterConfig()).process(batch(documents))
    rows = result.to_pyarrow().to_pylist()
    assert [row["drop_reason"] for row in rows] == [None, "nul_character", "empty"]
    assert [row["text"] for row in rows] == [d.text for d in documents]
    assert result._metadata == {"shard": 0}


def test_a_reason_that_another_stage_gave_stands():
    stage = FilterStage(FilterConfig())
    result = stage.process(batch([make("a"), make("b")], drop_reason=["their classifier", None]))
    assert result.to_pyarrow().column("drop_reason").to_pylist() == ["their classifier", None]


def test_a_pandas_batch_of_another_stage_is_understood():
    frame = batch([make("a")]).to_pandas()
    result = FilterStage(FilterConfig()).process(
        DocumentBatch(dataset_name="d", data=frame, _metadata={"shard": 0})
    )
    assert result.to_pyarrow().column("drop_reason").to_pylist() == [None]


def test_written_documents_are_read_back_as_they_were(tmp_path):
    places = Places(tmp_path, tmp_path)
    documents = [make("a", text=honest_text("a") + " \ufffd"), make("b", text="x\0y"), make("c")]
    task = FilterStage(FilterConfig()).process(batch(documents))
    WriteStage(places).process(task)
    assert list(read_documents(places.kept(0, 0))) == [documents[0], documents[2]]
    dropped = list(read_documents(places.dropped(0, 0)))
    assert [d.metadata for d in dropped] == [{"request": 3, "drop_reason": "nul_character"}]
    assert dropped[0].text == "x\u2400y"
    counts = json.loads(places.counts(0, 0).read_text())
    assert counts == {
        "requests": 3,
        "documents": 2,
        "tokens": 122,
        "prompt_tokens": 15,
        "output_tokens": 183,
        "replacement_characters": 1,
        "dropped": {"nul_character": 1},
    }


@pytest.mark.parametrize(("gpus", "reserved"), [(0, 0.0), (2, 2.0), (3, 2.0)])
def test_a_worker_reserves_the_gpus_of_its_engine(tmp_path, monkeypatch, gpus, reserved):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    config = SynthesisConfig(tokens=1, engine={"tensor_parallel": 2})
    stage = GenerationStage(config, Places(tmp_path, tmp_path), "run", dict, dict)
    assert stage.resources.gpus == reserved


def test_more_gpus_than_there_are_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    config = SynthesisConfig(tokens=1, workers=2, shards=4, engine={"tensor_parallel": 2})
    with pytest.raises(ConfigError, match="2 engines of 2 GPUs each are asked for, but 3"):
        GenerationStage(config, Places(tmp_path, tmp_path), "run", dict, dict)


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        ([0, 4, 4], None),
        ([3, 3, 3], r"4 engines of 2 GPUs each are asked for, but 3 \+ 3 \+ 3 are here"),
    ],
)
def test_on_a_cluster_an_engine_fits_on_one_node(tmp_path, monkeypatch, gpus, message):
    nodes = [Node(f"n{i}", is_head=not i, cpus=8, gpus=n) for i, n in enumerate(gpus)]
    monkeypatch.setattr("megatron_synth.synthesis.stages.nodes_of", lambda address: nodes)
    config = SynthesisConfig(
        tokens=1, workers=4, shards=4, engine={"tensor_parallel": 2}, ray={"address": "h:1"}
    )
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        stage = GenerationStage(config, Places(tmp_path, tmp_path), "run", dict, dict)
        assert stage.resources.gpus == 2.0


def test_a_shard_task_names_its_shard():
    task = ShardTask("synthesis", {"shard": 4})
    assert task.validate()
    assert task.get_deterministic_id() == "shard-00004"
    assert not ShardTask("synthesis", {}).validate()


@pytest.mark.parametrize("missing", ["drop_reason"])
def test_the_writer_asks_for_what_it_needs(tmp_path, missing):
    stage = WriteStage(Places(tmp_path, tmp_path))
    assert not stage.validate_input(batch([make("a")]))
    assert missing in stage.inputs()[1]
