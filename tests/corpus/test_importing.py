"""Import: counts that add up, equal bytes, and no half product after a kill."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from megatron_synth.config import ConfigError, DataError, parse_config
from megatron_synth.corpus import (
    Document,
    ImportConfig,
    import_corpus,
    read_documents,
    write_documents,
)
from megatron_synth.corpus.files import DOCUMENTS, documents_of
from megatron_synth.corpus.importing import products
from megatron_synth.runs import Progress, read_progress


def _rows(count, seed=0):
    rng = random.Random(seed)
    return [
        Document(f"d{i}", " ".join(rng.choices(["alpha", "beta", "gamma", "delta"], k=60)))
        for i in range(count)
    ]


def test_every_row_is_accounted_for(tmp_path):
    path = tmp_path / "in.jsonl"
    good = _rows(300)
    lines = [json.dumps({"id": d.id, "text": d.text}) for d in good]
    lines += [json.dumps({"id": "again", "text": good[5].text})]  # a duplicate
    lines += [json.dumps({"id": "d7", "text": good[8].text + " more"})]  # an id that occurred
    lines += [json.dumps({"id": "short", "text": "short"})]
    lines += [json.dumps({"id": "breaks", "text": good[9].text + "\n\n\n\n\n"})]  # a duplicate now
    lines += [json.dumps({"id": "long", "text": "x" * 900})]
    lines += ["{"]
    path.write_text("\n".join(lines))
    config = ImportConfig(input=str(path), min_characters=100, max_characters=800)
    counts = import_corpus(config, tmp_path / "out")
    assert counts["rows"] == 306
    assert counts["documents"] == 301
    expected = {"quarantined": 1, "too_short": 1, "too_long": 1, "duplicates": 2, "renamed": 1}
    assert {k: counts[k] for k in expected} == expected
    assert counts["changed"]["line_breaks"] == 1
    found = list(read_documents(tmp_path / "out" / "documents.jsonl.zst"))
    assert [d.id for d in found] == [*(d.id for d in good), "d7#2"]
    assert counts["characters"] == sum(len(d.text) for d in found)
    (noted,) = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert (json.loads(noted)["line"], json.loads(noted)["file"]) == (306, str(path))


def test_a_corpus_is_written_in_the_format_that_was_asked_for(tmp_path):
    write_documents(tmp_path / "in.jsonl", _rows(20))
    made = {}
    for name in ("jsonl", "parquet"):
        config = ImportConfig(input=str(tmp_path / "in.jsonl"), min_characters=1, format=name)
        import_corpus(config, tmp_path / name)
        assert documents_of(tmp_path / name).name == DOCUMENTS[name]
        made[name] = list(read_documents(tmp_path / name))
        assert set(products(config)) - {"manifest.json"} == {
            path.name for path in (tmp_path / name).iterdir()
        }
    assert made["parquet"] == made["jsonl"] == _rows(20)
    with pytest.raises(DataError, match="holds none of"):
        documents_of(tmp_path)


def test_too_many_bad_rows_fail_and_leave_no_documents(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join([json.dumps({"text": d.text}) for d in _rows(50)] + ["{"]))
    with pytest.raises(DataError, match="1 of 51 rows"):
        import_corpus(ImportConfig(input=str(path)), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["quarantine.jsonl"]
    config = ImportConfig(input=str(path), quarantine_limit=0.05)
    assert import_corpus(config, tmp_path / "out")["documents"] == 50


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": "short"}\n'])
def test_an_empty_corpus_is_a_data_error(tmp_path, content):
    (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(DataError, match="no document is left"):
        import_corpus(ImportConfig(input=str(tmp_path / "in.jsonl")), tmp_path / "out")
    assert not (tmp_path / "out" / "documents.jsonl.zst").exists()


def test_an_import_that_leaves_nothing_says_where_the_rows_went(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "short"}\n{\n{')
    config = ImportConfig(input=str(tmp_path / "in.jsonl"), quarantine_limit=1)
    with pytest.raises(DataError, match=r"left of 3 rows \(1 too short, 2 quarantined\)"):
        import_corpus(config, tmp_path / "out")


def test_the_wrong_text_column_names_the_column(tmp_path):
    write_documents(tmp_path / "in.jsonl", _rows(5))
    config = ImportConfig(input=str(tmp_path / "in.jsonl"), text_column="content")
    with pytest.raises(DataError, match="no 'content'"):
        import_corpus(config, tmp_path / "out")


def test_max_documents_stops_early_and_duplicates_can_be_kept(tmp_path):
    path = tmp_path / "in.jsonl"
    write_documents(path, [*_rows(20), *_rows(20)])
    few = import_corpus(ImportConfig(input=str(path), max_documents=7), tmp_path / "few")
    assert few["documents"] == 7
    kept = import_corpus(ImportConfig(input=str(path), keep_duplicates=True), tmp_path / "all")
    assert (kept["documents"], kept["renamed"]) == (40, 20)


def test_unknown_step_is_a_config_error():
    with pytest.raises(ConfigError):
        parse_config({"normalise": ["line_brakes"]}, ImportConfig, where="test")


def test_progress_ends_at_the_size_of_the_input(tmp_path):
    path = tmp_path / "in.jsonl"
    write_documents(path, _rows(2000))
    progress = Progress(tmp_path / ".progress.json")
    import_corpus(ImportConfig(input=str(path)), tmp_path / "out", progress)
    assert progress.state.done == pytest.approx(progress.state.total)
    assert read_progress(tmp_path).unit == "MB"


def test_installed_input_is_the_default_and_repeats(tmp_path, monkeypatch):
    from megatron_synth.corpus import installed

    root = tmp_path / "site-packages" / "pack"
    root.mkdir(parents=True)
    for i in range(5):
        (root / f"m{i}.py").write_text(f'"""Module {i % 4}: {"words " * 50}"""\n')
    monkeypatch.setattr(installed, "installed_roots", lambda: [root.parent])
    counts = import_corpus(ImportConfig(), tmp_path / "a")
    import_corpus(ImportConfig(), tmp_path / "b")
    assert (counts["documents"], counts["duplicates"], counts["source_files"]) == (4, 1, 5)
    one, two = (tmp_path / n / "documents.jsonl.zst" for n in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert next(read_documents(one)).metadata == {"package": "pack"}


SCRIPT = """
import sys
from pathlib import Path
from megatron_synth.corpus import ImportConfig, import_corpus
print("go", flush=True)
import_corpus(ImportConfig(input=sys.argv[1], near_duplicates={}), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_kill_at_any_time_leaves_no_half_corpus_and_a_rerun_is_identical(tmp_path):
    path, out = tmp_path / "in.jsonl.gz", tmp_path / "out"
    write_documents(path, [*_rows(12_000), *_rows(100)])
    config = ImportConfig(input=str(path), near_duplicates={})
    started = time.monotonic()
    import_corpus(config, tmp_path / "whole")
    seconds = time.monotonic() - started
    whole = (tmp_path / "whole" / "documents.jsonl.zst").read_bytes()
    rng = random.Random(3)
    command = [sys.executable, "-c", SCRIPT, str(path), str(out)]
    killed = 0
    for _ in range(6):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(rng.uniform(0, seconds))
            os.kill(process.pid, signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        final = out / "documents.jsonl.zst"
        assert not final.exists() or final.read_bytes() == whole
        final.unlink(missing_ok=True)
    assert killed >= 3
    import_corpus(config, out)
    assert (out / "documents.jsonl.zst").read_bytes() == whole
    dropped = (out / "dropped.jsonl").read_bytes()
    assert dropped == (tmp_path / "whole" / "dropped.jsonl").read_bytes() != b""
    names = sorted(p.name for p in out.iterdir())
    assert names == ["documents.jsonl.zst", "dropped.jsonl", "quarantine.jsonl"]
