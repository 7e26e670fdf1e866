"""Columns: the verdicts of `read_documents`, row by row, however the file is cut."""

import gzip
import itertools
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synth.corpus import Document, Quarantine, read_documents, write_documents
from megatron_synth.corpus.columns import Columns, parts_of, read_columns

ANY = st.characters()  # lone surrogates and NUL too
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(ANY, max_size=9),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)
KEY = st.sampled_from(["text", "id", "source_id", "method", "title", "metadata", "seed"])
ROW = st.dictionaries(KEY, VALUE, max_size=5).map(json.dumps) | st.builds(
    lambda text, rest: json.dumps({**rest, "text": text}, ensure_ascii=False),
    st.text(max_size=20),
    st.dictionaries(KEY, VALUE, max_size=4),
).filter(lambda line: line.isprintable())


def _with_long_integer(key):
    """More digits than Python's json parses."""
    return f'{{"text": "a", "{key}": {"7" * 5000}}}'.encode()


LINE = (
    ROW.map(lambda line: line.encode("utf-8", "surrogatepass"))
    | st.binary(max_size=30).map(lambda b: b.replace(b"\n", b""))
    | st.sampled_from(
        [b"", b"  ", b"\r", b'{"text": "a", "x": "\xff"}', b'{"text":"a"} {"text":"b"}']
    )
    | st.sampled_from(["text", "id", "method", "x"]).map(_with_long_integer)
)


def by_columns(source, part_bytes, columns=None):
    """(text, id, source_id, method) of every good row, (file, line, reason) of every bad one."""
    good, bad, lines = [], [], {}
    for part in parts_of(source, part_bytes):
        last = 0
        before = lines.setdefault(part.path, 0)
        for rows in read_columns(part, columns or Columns()):
            (texts,) = rows.texts
            for text, line, name, *rest in zip(
                texts, rows.lines, rows.ids, rows.source_ids, rows.methods, strict=True
            ):
                default = f"{part.path.name.split('.')[0]}:{before + line}"
                good.append((text, name or default, *rest))
            bad += [(str(part.path), before + line, reason) for line, reason, _ in rows.bad]
            last = rows.last_line
        lines[part.path] += last
    return good, bad


def by_documents(source, folder):
    with Quarantine(folder / "quarantine.jsonl") as quarantine:
        good = [
            (d.text, d.id, d.source_id, d.method)
            for d in read_documents(source, quarantine=quarantine)
        ]
    noted = [json.loads(line) for line in (folder / "quarantine.jsonl").open()]
    return good, [(n["file"], n["line"], n["reason"]) for n in noted]


@settings(max_examples=400, deadline=None)
@given(lines=st.lists(LINE, max_size=8), end=st.booleans(), part_bytes=st.integers(1, 300))
def test_any_lines_get_the_same_verdicts_in_any_parts(tmp_path_factory, lines, end, part_bytes):
    folder = tmp_path_factory.mktemp("columns")
    path = folder / "x.jsonl"
    path.write_bytes(b"\n".join(lines) + (b"\n" if end else b""))
    assert by_columns(path, part_bytes) == by_documents(path, folder)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress, bytes])
def test_flipped_bytes_get_the_same_verdicts(tmp_path, pack):
    rng = random.Random(3)
    rows = [{"id": i, "text": f"text {i} é 🦊 " * 9, "x": [1, {"y": "é"}]} for i in range(30)]
    whole = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    ending = {gzip.compress: ".jsonl.gz", bytes: ".jsonl"}.get(pack, ".jsonl.zst")
    different = 0
    for trial in range(150):
        data = bytearray(whole)
        for _ in range(rng.randint(0, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path = tmp_path / f"{trial}{ending}"
        path.write_bytes(pack(bytes(data)))
        if rng.random() < 0.2:
            path.write_bytes(path.read_bytes()[: rng.randrange(1, path.stat().st_size)])
        expected = by_documents(path, tmp_path)
        assert by_columns(path, rng.randint(1, 4000)) == expected
        different += bool(expected[1])
    assert different > 50


def test_parquet_in_parts_is_what_read_documents_gives(tmp_path):
    documents = [
        Document(f"d{i}", f"text {i}", source_id=f"s{i}" if i % 3 else None, metadata={"n": i})
        for i in range(5000)
    ]
    write_documents(tmp_path / "x.parquet", documents)
    assert len(parts_of(tmp_path / "x.parquet", 1)) == 2  # row groups of 4,096
    assert by_columns(tmp_path / "x.parquet", 1) == by_documents(tmp_path / "x.parquet", tmp_path)
    rows = pa.table({"text": ["a", None, "b\0", "c"], "id": pa.array([1, 2, 3, None])})
    pq.write_table(rows, tmp_path / "y.parquet", row_group_size=2)
    found = by_columns(tmp_path / "y.parquet", 1)
    assert found == by_documents(tmp_path / "y.parquet", tmp_path)
    assert [line for _, line, _ in found[1]] == [2, 3]


@pytest.mark.parametrize("part_bytes", [1, 1 << 30])
def test_a_damaged_row_group_gets_the_same_verdicts(tmp_path, part_bytes):
    path = tmp_path / "x.parquet"
    rng = random.Random(1)
    texts = ["".join(rng.choices("abcdefgh", k=60)) for _ in range(90)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=30)
    with pq.ParquetFile(path) as file:
        column = file.metadata.row_group(1).column(0)
        start, size = column.dictionary_page_offset, column.total_compressed_size
    data = bytearray(path.read_bytes())
    data[start : start + size] = bytes(255 - b for b in data[start : start + size])
    path.write_bytes(data)
    good, bad = by_documents(path, tmp_path)
    assert [text for text, *_ in good] == texts[:30] + texts[60:]
    assert [line for _, line, _ in bad] == list(range(31, 61))
    found_good, found_bad = by_columns(path, part_bytes)
    assert found_good == good
    assert [place[:2] for place in found_bad] == [place[:2] for place in bad]


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(0, 60), max_size=30), part_bytes=st.integers(1, 200))
def test_parts_cover_a_file_once_and_begin_at_lines(tmp_path_factory, sizes, part_bytes):
    path = tmp_path_factory.mktemp("parts") / "x.jsonl"
    path.write_bytes(b"".join(b"x" * size + b"\n" for size in sizes))
    parts = parts_of(path, part_bytes)
    data = path.read_bytes()
    assert parts[0].start == 0
    assert parts[-1].stop == len(data)
    assert sum(part.size for part in parts) == len(data)
    for left, right in itertools.pairwise(parts):
        assert left.stop == right.start
        assert data[right.start - 1 : right.start] == b"\n"


def test_several_keys_come_side_by_side_and_a_row_without_one_is_bad(tmp_path):
    rows = [{"a": "x", "b": "y"}, {"a": "z"}, {"a": "p", "b": 3}, {"b": "r", "a": "q"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (part,) = parts_of(tmp_path / "x.jsonl", 1 << 20)
    (found,) = read_columns(part, Columns(("a", "b"), provenance=False))
    assert found.texts == (["x", "q"], ["y", "r"])
    assert [(line, why) for line, why, _ in found.bad] == [
        (2, "no 'b'"),
        (3, "'b' is a number, not a string"),
    ]


def test_sentences_are_lists_only_where_asked(tmp_path):
    rows = [{"text": ["a", "b"]}, {"text": "c"}, {"text": []}, {"text": ["a", 3]}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (part,) = parts_of(tmp_path / "x.jsonl", 1 << 20)
    (found,) = read_columns(part, Columns(sentences=True))
    assert found.texts == ([["a", "b"], "c", []],)
    assert [line for line, _, _ in found.bad] == [4]
    (found,) = read_columns(part, Columns())
    assert found.texts == (["c"],)
