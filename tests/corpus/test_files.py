"""Which files count, what they are called, and that none of them is overwritten."""

import json
import os
import sys

import pytest

from megatron_synth.config import DataError
from megatron_synth.corpus import (
    Document,
    ImportConfig,
    check_corpus,
    import_corpus,
    list_files,
    read_documents,
    write_documents,
)
from megatron_synth.corpus.decontamination import Benchmarks, DecontaminateConfig
from megatron_synth.corpus.files import DOCUMENTS, SIDE_LISTS, list_all, row_stem, shown_path
from megatron_synth.runs import hash_json

DOCUMENT = Document("a", "some words " * 40)
QUERY = "which of these planets turns most slowly around its own axis seen from the sun"


def test_check_never_replaces_its_input_by_the_list(tmp_path):
    path = tmp_path / "mine.jsonl"
    write_documents(path, [DOCUMENT])
    before = path.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(path)
    (tmp_path / "hard.jsonl").hardlink_to(path)
    for source in (path, tmp_path, f"{tmp_path}/m*.jsonl"):
        for name in ("mine.jsonl", "link.jsonl", "hard.jsonl"):
            with pytest.raises(DataError, match=r"is read.*replaced"):
                check_corpus(str(source), list_file=tmp_path / name)
    assert path.read_bytes() == before


def test_import_never_replaces_its_input_or_the_queries(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    write_documents(own / DOCUMENTS["jsonl"], [DOCUMENT])
    (own / "contaminated.jsonl").write_text(json.dumps({"query": QUERY}))
    write_documents(tmp_path / "in.jsonl", [DOCUMENT])
    before = {p.name: p.read_bytes() for p in own.iterdir()}
    queries = {"queries": (str(own / "contaminated.jsonl"),)}
    for config in (
        ImportConfig(input=str(own)),
        ImportConfig(input=f"{own}/*.zst"),
        ImportConfig(input=str(tmp_path / "in.jsonl"), decontaminate=queries),
    ):
        with pytest.raises(DataError, match=r"is read.*replaced"):
            import_corpus(config, own)
    assert {p.name: p.read_bytes() for p in own.iterdir()} == before


def test_the_list_makes_its_folder_and_must_be_no_folder(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{')
    listed = tmp_path / "new" / "deep" / "bad.jsonl"
    check_corpus(str(tmp_path / "in.jsonl"), list_file=listed)
    assert json.loads(listed.read_text())["line"] == 2
    assert [p.name for p in listed.parent.iterdir()] == ["bad.jsonl"]
    with pytest.raises(DataError, match="is a folder"):
        check_corpus(str(tmp_path / "in.jsonl"), list_file=tmp_path)


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_what_an_import_wrote_beside_its_documents_is_no_corpus(kind, tmp_path):
    write_documents(tmp_path / DOCUMENTS[kind], [DOCUMENT])
    for name in SIDE_LISTS:
        (tmp_path / name).write_text("{}")
    assert "manifest.json" in SIDE_LISTS
    assert list_files(tmp_path) == [tmp_path / DOCUMENTS[kind]]
    assert list_files(f"{tmp_path}/*") == [tmp_path / DOCUMENTS[kind]]
    assert list_files(tmp_path / "dropped.jsonl") == [tmp_path / "dropped.jsonl"]


def test_overlapping_sources_are_read_once_in_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl"):
        write_documents(tmp_path / name, [DOCUMENT])
    sources = [tmp_path / "b.jsonl", tmp_path, f"{tmp_path}/*.jsonl"]
    assert list_all(sources) == [tmp_path / "b.jsonl", tmp_path / "a.jsonl"]


def test_benchmarks_of_one_name_in_several_folders_are_told_apart(tmp_path):
    for name in ("mmlu", "gsm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.jsonl").write_text(
            json.dumps({"id": 0, "query": f"{name} {QUERY}"})
        )
    (tmp_path / "quiz.val.jsonl").write_text(json.dumps({"query": f"quiz {QUERY}"}))
    sources = (str(tmp_path), f"{tmp_path}/*/test.jsonl")
    found = Benchmarks(DecontaminateConfig(queries=sources))
    assert found.counts["queries"] == 3
    (hit,) = found.hits([QUERY])
    assert sorted((q.benchmark, q.id) for q in hit.queries) == [
        ("gsm/test", "0"),
        ("mmlu/test", "0"),
        ("quiz", "quiz:1"),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_names_that_are_no_unicode_name_rows_and_places(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.x.jsonl")
    path.write_text(f'{{"text": "{QUERY}"}}\n{{')
    assert row_stem(path) == "\\xff"
    assert shown_path(path) == f"{tmp_path}/\\xff.x.jsonl"
    found = check_corpus(str(tmp_path), list_file=tmp_path / "bad.txt")
    assert found.bad_rows[0].first == (f"{shown_path(path)}:2",)
    found.model_dump_json().encode()
    assert json.loads((tmp_path / "bad.txt").read_text())["file"] == shown_path(path)
    config = ImportConfig(
        input=str(tmp_path),
        min_characters=1,
        quarantine_limit=1,
    )
    import_corpus(config, tmp_path.parent / "out")
    assert [d.id for d in read_documents(tmp_path.parent / "out" / DOCUMENTS["jsonl"])] == [
        "\\xff:1"
    ]
    assert hash_json([str(path)]) != hash_json([shown_path(path)])
