"""Readers: every good row is kept, every bad row is set aside, and nothing else happens."""

import gzip
import json
import logging
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.config import DataError, RunError
from megatron_synth.corpus import Document, Quarantine, read_documents, write_documents
from megatron_synth.corpus import reading as reading_module
from megatron_synth.corpus.lines import Broken, TooLong, read_lines

CLEAN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | CLEAN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CLEAN, inner, max_size=3),
    max_leaves=6,
)
DOCUMENTS = st.builds(
    Document,
    id=CLEAN.filter(bool),
    text=CLEAN,
    source_id=st.none() | CLEAN,
    method=st.none() | CLEAN,
    generation=st.none() | st.integers(0, 100),
    seed=st.none() | st.integers(0, 2**63 - 1),
    sampling=st.none() | st.dictionaries(CLEAN, st.floats(0, 2), min_size=1, max_size=3),
    scores=st.none() | st.dictionaries(CLEAN, st.floats(-9, 9), min_size=1, max_size=3),
    metadata=st.dictionaries(CLEAN, JSON_VALUE, max_size=3),
)
SUFFIXES = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read_back(tmp_path, suffix):
    @settings(max_examples=40, deadline=None)
    @given(documents=st.lists(DOCUMENTS, max_size=6))
    def check(documents):
        path = tmp_path / f"x{suffix}"
        assert write_documents(path, documents) == len(documents)
        assert list(read_documents(path)) == documents

    check()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_documents_give_equal_bytes_and_no_leftovers(tmp_path, suffix):
    documents = [Document(f"d{i}", f"text {i} é" * i, metadata={"n": i}) for i in range(300)]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f".x{suffix}.999.tmp").write_text("of a killed try")
        write_documents(tmp_path / name / f"x{suffix}", documents)
    first, second = (tmp_path / n / f"x{suffix}" for n in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert [p.name for p in (tmp_path / "a").iterdir()] == [f"x{suffix}"]


def test_a_failing_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.jsonl"
    write_documents(path, [Document("old", "old")])

    def broken():
        yield Document("new", "new")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_documents(path, broken())
    assert [d.id for d in read_documents(path)] == ["old"]


GOOD = [
    json.dumps({"id": f"d{i}", "text": f"text {i} é 🦊"}, ensure_ascii=False) for i in range(40)
]
BAD = {
    b"{": "not valid JSON",
    b'{"id": "x", "text": "cut': "not valid JSON",
    b"[" * 100_000: "not valid JSON",
    b"1" * 5000: "not a JSON object but a number",
    b"[1, 2]": "not a JSON object but a list",
    b"null": "not a JSON object but null",
    b'"text"': "not a JSON object but a string",
    b'{"id": "x"}': "no 'text'",
    b'{"text": null}': "'text' is null, not a string",
    b'{"text": 3}': "'text' is a number, not a string",
    b'{"text": ["a"]}': "'text' is a list, not a string",
    b'{"text": "a\\u0000b"}': "NUL character in the text",
    b'{"text": "a\\ud800b"}': "lone surrogate in the text",
    b'{"text": "\xff\xfe"}': "not valid UTF-8",
    b"\x00\x01\x02": "not valid JSON",
}


def _pack(data: bytes, suffix: str) -> bytes:
    if suffix.endswith(".gz"):
        return gzip.compress(data)
    return zstandard.ZstdCompressor().compress(data) if suffix.endswith(".zst") else data


@pytest.mark.parametrize("suffix", SUFFIXES[:3])
def test_mutated_files_keep_every_good_row_and_quarantine_every_bad_one(tmp_path, suffix):
    rng = random.Random(suffix)
    for trial in range(60):
        rows = [(line.encode(), None) for line in rng.sample(GOOD, rng.randint(1, len(GOOD)))]
        for _ in range(rng.randint(0, 6)):
            bad = rng.choice(list(BAD))
            rows.insert(rng.randint(0, len(rows)), (bad, BAD[bad]))
        for _ in range(rng.randint(0, 3)):  # blank lines are no rows
            rows.insert(rng.randint(0, len(rows)), (rng.choice([b"", b"  ", b"\r"]), ""))
        ends = b"\r\n" if rng.random() < 0.3 else b"\n"
        data = ends.join(row for row, _ in rows) + (ends if rng.random() < 0.5 else b"")
        path = tmp_path / f"{trial}{suffix}"
        path.write_bytes(_pack(data, suffix))
        quarantine = Quarantine(tmp_path / "quarantine.jsonl")
        with quarantine:
            found = [d.id for d in read_documents(path, quarantine=quarantine)]
        assert found == [json.loads(row)["id"] for row, why in rows if why is None]
        noted = [json.loads(x) for x in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
        expected = [(i, why) for i, (_, why) in enumerate(rows, start=1) if why]
        assert [(n["line"], n["reason"]) for n in noted] == expected
        assert all(n["file"] == str(path) for n in noted)
        assert (quarantine.good, quarantine.bad) == (len(found), len(expected))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_flipped_byte_never_costs_another_row(tmp_path_factory, data):
    lines = [line.encode() for line in GOOD[:8]]
    which = data.draw(st.integers(0, 7))
    place = data.draw(st.integers(0, len(lines[which]) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != ord("\n")))
    lines[which] = lines[which][:place] + bytes([byte]) + lines[which][place + 1 :]
    path = tmp_path_factory.mktemp("flip") / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    quarantine = Quarantine()
    found = [d.text for d in read_documents(path, quarantine=quarantine)]
    others = [json.loads(line)["text"] for i, line in enumerate(GOOD[:8]) if i != which]
    assert (len(found), quarantine.bad) in {(8, 0), (7, 1)}
    # A row that is read all the same may say just what another one says: go by its place.
    rest = found[:which] + found[which + 1 :] if len(found) == 8 else found
    assert rest == others


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_truncated_file_keeps_its_whole_rows_and_says_so(tmp_path, suffix):
    rng = random.Random(0)
    rows = [{"id": str(i), "text": "".join(rng.choices("abcdef ", k=200))} for i in range(4000)]
    whole = _pack("".join(json.dumps(r) + "\n" for r in rows).encode(), suffix)
    for share in (0.2, 0.6, 0.999):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(whole[: int(len(whole) * share)])
        quarantine = Quarantine()
        found = list(read_documents(path, quarantine=quarantine))
        assert [d.text for d in found] == [r["text"] for r in rows[: len(found)]]
        assert quarantine.bad == 1
        assert "cut short" in next(iter(quarantine.reasons))
        if share > 0.5:
            assert found


def test_a_file_that_is_no_gzip_is_quarantined(tmp_path):
    (tmp_path / "x.jsonl.gz").write_bytes(b"plain text\n")
    (tmp_path / "x.jsonl.zst").write_bytes(b"plain text\n")
    quarantine = Quarantine()
    assert list(read_documents(tmp_path, quarantine=quarantine)) == []
    assert quarantine.bad == 2


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_several_compressed_parts_in_one_file_are_all_read(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"".join(_pack((line + "\n").encode(), suffix) for line in GOOD))
    assert len(list(read_documents(path))) == len(GOOD)


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_an_overlong_line_is_skipped_in_bounded_memory(tmp_path, end):
    path = tmp_path / "x.jsonl"
    for long in (1001, 300_000, 900_000):
        path.write_bytes(b"first\n" + b"x" * long + b"\nlast\n" + b"y" * long + end)
        lines = list(read_lines(path, longest=1000))
        assert [line if isinstance(line, bytes) else type(line) for line in lines] == [
            b"first",
            TooLong,
            b"last",
            TooLong,
        ]
    path.write_bytes(b"x" * 1000)
    assert list(read_lines(path, longest=1000)) == [b"x" * 1000]


def test_broken_files_yield_broken_last(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"a\nb\n")[:-3])
    *_, last = read_lines(path)
    assert isinstance(last, Broken)


def test_without_a_quarantine_the_first_bad_row_is_an_error(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(GOOD[0] + "\n{\n")
    with pytest.raises(DataError, match="line 2: not valid JSON"):
        list(read_documents(path))


def test_more_bad_rows_than_the_limit_fail_with_the_counts(tmp_path):
    quarantine = Quarantine(tmp_path / "q.jsonl", limit=0.01)
    with quarantine:
        quarantine.good = 99
        quarantine.add("a.jsonl", 7, "not valid JSON", b"{")
        quarantine.check()  # 1 of 100 is at the limit
        quarantine.add("a.jsonl", 9, "no 'text'", b"{}")
        with pytest.raises(DataError, match=r"2 of 101 rows.*1\.0%.*line 7"):
            quarantine.check()
    assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full: not Linux")
@pytest.mark.parametrize("rows", [1, 10_000])  # fails when it is closed; when a row is added
def test_a_full_disk_under_the_quarantine_is_one_clear_error(rows):
    with (
        pytest.raises(RunError, match="cannot write: no space left"),
        Quarantine(Path("/dev/full")) as quarantine,
    ):
        for line in range(rows):
            quarantine.add("x.jsonl", line, "not valid JSON")


def test_folders_and_globs_are_read_in_sorted_order_without_hidden_files(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.jsonl", "sub/a.jsonl.zst", "a.parquet", ".hidden.jsonl", "sub/_x.jsonl"):
        write_documents(tmp_path / name, [Document(name, "t")])
    (tmp_path / "notes.txt").write_text("no corpus")
    assert [d.id for d in read_documents(tmp_path)] == ["a.parquet", "b.jsonl", "sub/a.jsonl.zst"]
    assert [d.id for d in read_documents(f"{tmp_path}/*.jsonl")] == ["b.jsonl"]
    assert [d.id for d in read_documents(f"{tmp_path}/**/*.zst")] == ["sub/a.jsonl.zst"]


def test_paths_with_nothing_to_read_are_data_errors(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    for source, message in [
        (tmp_path / "absent", "no such file"),
        (tmp_path, "no corpus file in this folder"),
        (f"{tmp_path}/*.jsonl", "no corpus file matches"),
        (tmp_path / "x.txt", "not a kind of file"),
    ]:
        with pytest.raises(DataError, match=message):
            list(read_documents(source))


def test_columns_can_be_named_and_other_keys_are_kept(tmp_path):
    path = tmp_path / "x.jsonl"
    row = {"content": "t", "url": "u", "prompt": 5, "method": "sbp", "metadata": {"a": 1}}
    path.write_text(json.dumps({"name": 7, **row}) + "\n" + json.dumps(row))
    one, two = read_documents(path, text_column="content", id_column="name")
    assert (one.id, two.id) == ("7", "x:2")
    assert one.method == "sbp"
    assert one.metadata == {"url": "u", "prompt": 5, "a": 1}  # `prompt` has another type


def test_foreign_parquet_rows_are_judged_one_by_one(tmp_path):
    path = tmp_path / "x.parquet"
    raw = pa.array([b"good", b"\xff\xfe", b"also good", None], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, raw.buffers(), raw.null_count)
    pq.write_table(pa.table({"text": text, "n": [1, 2, 3, 4]}), path)
    quarantine = Quarantine()
    found = list(read_documents(path, quarantine=quarantine))
    assert [(d.text, d.metadata["n"]) for d in found] == [("good", 1), ("also good", 3)]
    assert dict(quarantine.reasons) == {"not valid UTF-8": 1, "'text' is null, not a string": 1}


def test_a_damaged_parquet_file_is_a_data_error(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(DataError, match="Parquet"):
        list(read_documents(tmp_path / "x.parquet"))


def test_damage_in_one_row_group_costs_no_other(tmp_path):
    path = tmp_path / "x.parquet"
    rng = random.Random(0)
    texts = ["".join(rng.choices("abcdefgh", k=50)) for _ in range(500)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=100)
    with pq.ParquetFile(path) as file:
        column = file.metadata.row_group(1).column(0)
        start, size = column.dictionary_page_offset, column.total_compressed_size
    data = bytearray(path.read_bytes())
    data[start : start + size] = b"\xff" * size
    path.write_bytes(data)
    seen = []
    with Quarantine(tmp_path / "quarantine.jsonl") as quarantine:
        found = list(read_documents(path, quarantine=quarantine, on_bytes=seen.append))
        assert [d.text for d in found] == texts[:100] + texts[200:]
        assert [d.id for d in found[99:101]] == ["x:100", "x:201"]
        assert quarantine.bad == 100
        with pytest.raises(DataError, match="100 of 500 rows"):
            quarantine.check()
    lines = [json.loads(x)["line"] for x in (tmp_path / "quarantine.jsonl").open()]
    assert lines == list(range(101, 201))
    assert sum(seen) == pytest.approx(path.stat().st_size, rel=0.01)


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst"])
def test_a_truncated_file_is_named_in_a_warning(tmp_path, name, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("megatron_synth"), "propagate", True)
    path = tmp_path / name
    path.write_bytes(_pack("\n".join(GOOD).encode(), path.suffix)[:-9])
    list(read_documents(path, quarantine=Quarantine()))
    assert str(path) in caplog.text
    assert "cut short" in caplog.text


def test_any_depth_of_nesting_is_read_or_set_aside_and_never_fails(tmp_path):
    for depth in (*range(900, 1010), 100_000):
        nested = '{"a":' * depth + "1" + "}" * depth
        lists = "[" * depth + "]" * depth
        rows = [
            '{"text": "fine"}',
            json.dumps({"text": "t", "metadata": nested}),
            f'{{"text": "t", "x": {lists}}}',
        ]
        (tmp_path / "x.jsonl").write_text("\n".join(rows))
        quarantine = Quarantine()
        found = list(read_documents(tmp_path / "x.jsonl", quarantine=quarantine))
        assert quarantine.good + quarantine.bad == 3
        for name in ("y.jsonl", "y.parquet"):
            assert write_documents(tmp_path / name, found) == len(found)


def test_progress_adds_up_to_the_bytes_on_disk(tmp_path):
    documents = [Document(str(i), "x" * 500) for i in range(3000)]
    for suffix in SUFFIXES[:3]:
        write_documents(tmp_path / f"x{suffix}", documents)
    seen = []
    list(read_documents(tmp_path, on_bytes=seen.append))
    assert sum(seen) == reading_module.total_bytes(tmp_path)


def test_metadata_with_a_lone_surrogate_survives(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "a", "text": "t", "note": "\\ud800"}\n')
    documents = list(read_documents(path))
    for suffix in SUFFIXES:
        write_documents(tmp_path / f"y{suffix}", documents)
        assert list(read_documents(tmp_path / f"y{suffix}")) == documents


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_figures_that_json_cannot_hold_become_strings(tmp_path, suffix):
    row = '{"text": "t", "id": "a", "x": [NaN, 1.5], "y": {"z": -Infinity}}'
    (tmp_path / "in.jsonl").write_text(row)
    write_documents(tmp_path / f"x{suffix}", read_documents(tmp_path / "in.jsonl"))
    if suffix == ".jsonl":
        assert not re.search(r"[:\[](NaN|-Infinity)", (tmp_path / "x.jsonl").read_text())
    (document,) = read_documents(tmp_path / f"x{suffix}")
    assert document.metadata == {"x": ["NaN", 1.5], "y": {"z": "-Infinity"}}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_integers_longer_than_python_parses_become_strings(tmp_path, suffix):
    digits = "7" * 5000
    (tmp_path / "in.jsonl").write_text(f'{{"text": "t", "id": {digits}, "x": [{digits}, 1]}}')
    write_documents(tmp_path / f"x{suffix}", read_documents(tmp_path / "in.jsonl"))
    (document,) = read_documents(tmp_path / f"x{suffix}")
    assert (document.id, document.metadata) == (digits, {"x": [digits, 1]})
    (tmp_path / "in.jsonl").write_text(f'{{"text": {digits}}}')
    with pytest.raises(DataError, match="'text' is a number, not a string"):
        list(read_documents(tmp_path / "in.jsonl"))


def test_real_text_is_read_whole(real_data):
    found = list(read_documents(real_data / "corpus" / "asp_en.jsonl.gz"))
    assert len(found) == 316
    assert len({d.id for d in found}) == 316
