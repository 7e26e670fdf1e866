"""IndexedReader against what stock Megatron-Core writes and reads."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stock import DOCUMENTS, DTYPES, pair_bytes, write_stock

from megatron_synth.config import DataError
from megatron_synth.packing.indexed import IndexedWriter
from megatron_synth.packing.layout import CODES, HEADER
from megatron_synth.packing.reader import IndexedReader

SOME = [[[1, 2, 3]], [], [[4, 5], [], [6]], [[]], [[7, 8, 9, 10]], []]


def flat(document):
    return [number for sequence in document for number in sequence]


@settings(max_examples=60, deadline=None)
@given(documents=DOCUMENTS, dtype=DTYPES, limit=st.integers(1, 12), modes=st.booleans())
def test_everything_that_stock_megatron_wrote_is_read(
    tmp_path_factory, documents, dtype, limit, modes
):
    stem = write_stock(tmp_path_factory.mktemp("r") / "d", documents, dtype, modes)
    reader = IndexedReader(stem)
    sequences = [sequence for document in documents for sequence in document]
    assert (reader.documents, reader.sequences) == (len(documents), len(sequences))
    assert (reader.dtype, reader.tokens) == (np.dtype(dtype), sum(map(len, sequences)))
    assert [reader.sequence(i).tolist() for i in range(reader.sequences)] == sequences
    assert [reader.document(i).tolist() for i in range(len(documents))] == [*map(flat, documents)]
    assert [len(reader.sequences_of(i)) for i in range(len(documents))] == [*map(len, documents)]
    assert (reader.modes is not None) == (modes and bool(sequences))
    owners = [i for i, document in enumerate(documents) for _ in flat(document)]
    assert [reader.document_at(token) for token in range(reader.tokens)] == owners
    blocks = list(reader.blocks(tokens=limit))
    assert all(len(b.ids) <= limit or b.documents == 1 for b in blocks)
    with IndexedWriter(stem.with_name("o.bin"), stem.with_name("o.idx"), dtype) as writer:
        for block in blocks:
            writer.add(block.ids, block.lengths, block.sequences)
        writer.finish()
    if reader.modes is None:
        assert pair_bytes(stem.with_name("o")) == pair_bytes(stem)


@settings(max_examples=40, deadline=None)
@given(documents=st.lists(st.lists(st.integers(0, 99), min_size=1), min_size=1, max_size=6))
def test_stock_megatron_reads_the_same_ids(tmp_path_factory, documents):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    stem = write_stock(tmp_path_factory.mktemp("r") / "d", [[d] for d in documents])
    theirs, ours = IndexedDataset(str(stem)), IndexedReader(stem)
    for i in range(len(documents)):
        assert ours.document(i).tolist() == theirs[i].tolist()


@pytest.mark.parametrize("name", CODES)
def test_every_dtype_of_megatron_is_read(tmp_path, name):
    reader = IndexedReader(write_stock(tmp_path / "d", SOME, getattr(np, name)))
    assert reader.dtype.name == name
    assert [reader.document(i).tolist() for i in range(6)] == [flat(d) for d in SOME]


def test_a_dataset_without_documents_is_read(tmp_path):
    reader = IndexedReader(write_stock(tmp_path / "d", []))
    assert (reader.documents, reader.sequences, reader.tokens) == (0, 0, 0)
    assert list(reader.blocks()) == []


def test_a_place_past_the_end_is_an_index_error(tmp_path):
    reader = IndexedReader(write_stock(tmp_path / "d", SOME))
    for read, numbers in (
        (reader.document, (-1, 6)),
        (reader.sequence, (-1, 6)),
        (reader.document_at, (-1, 10)),
    ):
        for number in numbers:
            with pytest.raises(IndexError):
                read(number)


def test_a_missing_dataset_names_what_is_there(tmp_path):
    write_stock(tmp_path / "wiki_text_document", SOME)
    assert IndexedReader(tmp_path / "wiki").documents == 6
    with pytest.raises(DataError, match="There: wiki_text_document"):
        IndexedReader(tmp_path / "wikipedia")
    (tmp_path / "wiki_text_document.bin").unlink()
    with pytest.raises(DataError, match=r"half of an indexed dataset: wiki_text_document\.bin"):
        IndexedReader(tmp_path / "wiki")


def _changed(stem, ending, position, code, value):
    import struct

    path = Path(f"{stem}.{ending}")
    content = bytearray(path.read_bytes())
    struct.pack_into(code, content, position, value)
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("position", "code", "value", "message"),
    [
        (0, "<B", 0, "not a Megatron indexed dataset"),
        (9, "<Q", 2, "not a Megatron indexed dataset"),
        (17, "<B", 9, "dtype code 9 is unknown"),
        (17, "<B", 8, "does not begin where"),
        (18, "<Q", 1 << 63, "cut short"),
        (26, "<Q", 0, "no document borders"),
        (26, "<Q", 6, "damaged: 162 bytes, 154 by its head"),
        (34, "<i", -1, "does not begin where"),
        (34, "<i", 4, "sequence 1 does not begin where"),
        (34 + 4 * 6 + 8, "<q", 4, "sequence 1 does not begin where"),
        (34 + 4 * 5, "<i", 2, r"40 bytes, but the \.idx says 11 tokens"),
        (34 + 12 * 6, "<q", 1, "documents from sequence 1"),
        (34 + 12 * 6 + 48, "<q", 5, "documents from sequence 0 to 5 of 6"),
        (34 + 12 * 6 + 8, "<q", 5, "document 1 ends before it begins"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, position, code, value, message):
    documents = [[[1, 2, 3]], [], [[4, 5], [], [6]], [[7, 8, 9]], [[1]], []]
    stem = write_stock(tmp_path / "d", documents)
    assert Path(f"{stem}.idx").stat().st_size == 34 + 12 * 6 + 8 * 7
    _changed(stem, "idx", position, code, value)
    with pytest.raises(DataError, match=message):
        IndexedReader(stem)


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    stem = write_stock(tmp_path / "d", SOME, np.uint16)
    for ending in ("bin", "idx"):
        path = Path(f"{stem}.{ending}")
        whole = path.read_bytes()
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            with pytest.raises(DataError):
                IndexedReader(stem)
        path.write_bytes(whole)
    assert IndexedReader(stem).tokens == 10


def test_no_changed_byte_of_the_index_gives_garbage(tmp_path):
    stem = write_stock(tmp_path / "d", SOME)
    path = Path(f"{stem}.idx")
    whole = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for position in range(len(whole)):
        for flip in (1, 128, rng.randrange(2, 128)):
            content = bytearray(whole)
            content[position] ^= flip
            path.write_bytes(bytes(content))
            try:
                reader = IndexedReader(stem)
            except DataError:
                refused += 1
                continue
            # What cannot be told: a dtype of the same size, and documents cut elsewhere.
            assert position == 17 or position >= HEADER.size + 12 * 6
            found = [reader.document(i).tolist() for i in range(reader.documents)]
            assert len(flat(found)) == 10
            assert position != 17 or reader.dtype.itemsize == 4
    assert refused > 2 * len(whole)


def test_reading_needs_no_torch(tmp_path):
    stem = write_stock(tmp_path / "d", SOME)
    code = (
        "import sys; from megatron_synth.packing.reader import IndexedReader as R;"
        f"assert R({str(stem)!r}).document(2).tolist() == [4, 5, 6];"
        "assert not {'torch', 'megatron.core', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
