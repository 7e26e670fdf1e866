"""A shard's documents on their way to the filters: in parts, each made once."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import ScriptedEngine, honest_text

from megatron_synth.config import RunError
from megatron_synth.corpus import Document
from megatron_synth.runs import Progress
from megatron_synth.synthesis import DOCUMENTS, DROPPED, SynthesisConfig, synthesize, tables
from megatron_synth.synthesis.contract import Item
from megatron_synth.synthesis.places import Places
from megatron_synth.synthesis.shard import Outcome

CONFIG = SynthesisConfig(tokens=9000, seed=1, shards=2, ray={"executor": "inline"})


def outcome(number: int, text: str, source: str) -> Outcome:
    document = Document(str(number), text, token_counts={"text": 1}, metadata={"request": number})
    return Outcome(Item(number, 0, "s", 0, number), document, source, None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    texts=st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), max_size=20),
    documents=st.integers(1, 7),
    characters=st.integers(1, 40),
)
def test_the_parts_hold_every_document_once_and_in_order(
    tmp_path_factory, monkeypatch, texts, documents, characters
):
    folder = tmp_path_factory.mktemp("parts")
    texts = [(a.encode("utf-8", "ignore").decode(), b) for a, b in texts]
    monkeypatch.setattr(tables, "_PART_DOCUMENTS", documents)
    monkeypatch.setattr(tables, "_PART_CHARACTERS", characters)
    places = Places(folder, folder)
    outcomes = [outcome(n, *pair) for n, pair in enumerate(texts)]
    count = tables.write_parts(iter(outcomes), places, 3)
    parts = [tables.read_part(places.table(3, part)).to_pylist() for part in range(count)]
    rows = [row for part in parts for row in part]
    assert [(row["id"], row["text"], row["source_text"]) for row in rows] == [
        (o.document.id, o.document.text, o.source_text) for o in outcomes
    ]
    assert all(len(part) <= documents for part in parts)
    for part in parts:  # only its last document may go over the bound
        assert sum(len(r["text"]) + len(r["source_text"]) for r in part[:-1]) < characters
    assert not places.table(3, count).exists()


def test_no_more_than_one_part_is_held_while_documents_come(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_PART_DOCUMENTS", 4)
    places = Places(tmp_path, tmp_path)

    def documents():
        for number in range(18):
            written = len(list(tmp_path.glob("*.parquet")))
            assert written >= (number - 1) // 4
            yield outcome(number, "text", "source")

    assert tables.write_parts(documents(), places, 0) == 5


@pytest.fixture
def step(documents, tokenizer, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_PART_DOCUMENTS", 10)

    def script(request):
        return "short" if int(request.key, 16) % 3 == 0 else honest_text(request.key)

    def run(out, engine=None):
        engine = engine or ScriptedEngine(tokenizer, script)
        folders = tokenizer.folder, model_folder, tmp_path / out
        return synthesize(CONFIG, documents, *folders, Progress(), make_engine=lambda: engine)

    return run


@pytest.fixture
def disk(monkeypatch):
    """The disk of the stages' small files: what was written, and how many counts fit on it."""

    class Disk:
        written: list[str] = []
        room: float = float("inf")

        def write(self, path, value):
            if path.name.startswith("counts-"):
                if self.room <= 0:
                    raise RunError("the disk is full")
                self.room -= 1
            path.write_text(json.dumps(value))
            self.written.append(path.name)

    disk = Disk()
    monkeypatch.setattr("megatron_synth.synthesis.stages.write_json", disk.write)
    return disk


@pytest.mark.parametrize("room", [0, 1, 3, 9, 11])
def test_a_part_that_was_written_before_a_stop_is_not_made_again(step, tmp_path, disk, room):
    whole = step("whole")
    files = sorted(disk.written)
    disk.written.clear()
    disk.room = room
    with pytest.raises(RunError, match="the disk is full"):
        step("stopped")
    disk.room = float("inf")
    second = step("stopped")
    assert sorted(disk.written) == files  # each once, over both tries
    for name in (DOCUMENTS, DROPPED):
        files_of = [tmp_path / out / name for out in ("whole", "stopped")]
        assert files_of[0].read_bytes() == files_of[1].read_bytes()
    for name in ("documents", "tokens", "dropped", "requests", "surplus_requests", "asked_again"):
        assert second[name] == whole[name]


def test_a_generated_shard_asks_the_engine_nothing_more(step, tmp_path, tokenizer, disk):
    disk.room = 0
    with pytest.raises(RunError):
        step("out")
    assert disk.written == ["generated-00000.json"]
    log = tmp_path / "out" / "requests-00000.log"
    before = log.read_bytes()
    disk.room = float("inf")
    second = ScriptedEngine(tokenizer)
    step("out", second)
    assert second.asked, "the other shard was not begun"
    assert log.read_bytes() == before
