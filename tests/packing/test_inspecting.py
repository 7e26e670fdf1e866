"""tools/inspect_indexed.py: what it prints, and its exit status."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stock import put_beside, write_stock

from megatron_synth.config import DataError
from megatron_synth.packing.comparing import compare
from megatron_synth.packing.inspecting import printable, show, window
from megatron_synth.packing.reader import IndexedReader
from megatron_synth.tokens import train_tokenizer

TOOL = Path(__file__).resolve().parents[2] / "tools" / "inspect_indexed.py"
TEXTS = ["one two three", "red \x1b[31m green \u202e blue", "", "three four"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    tokenizer = train_tokenizer(TEXTS * 9, 270, folder / "tokenizer")
    documents = [[[*tokenizer.encode(t), tokenizer.eos_id]] if t else [] for t in TEXTS]
    stem = write_stock(folder / "d_text_document", documents, np.uint16)
    put_beside(stem, documents, np.uint16)
    return stem, tokenizer, documents


def run(*arguments, status=0):
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == status, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran


@given(st.text())
def test_printed_text_holds_nothing_that_a_terminal_obeys(text):
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2066\u200b" for c in shown)
    plain = "".join(c for c in text if c.isalnum())
    assert "".join(printable(c) for c in plain) == printable(plain)


def test_documents_are_shown_with_text_and_provenance(packed):
    stem, tokenizer, documents = packed
    shown = run("show", stem, "--documents", "0:4", "--tokenizer", tokenizer.folder, "--json")
    content = json.loads(shown.stdout)
    assert (content["documents"], content["sequences"], content["dtype"]) == (4, 3, "uint16")
    assert content["documents_without_sequence"] == 1
    assert [one["ids"] for one in content["shown"]] == [
        [n for s in d for n in s] for d in documents
    ]
    assert [one["text"].removesuffix("<|endoftext|>") for one in content["shown"]] == TEXTS
    assert [one["provenance"]["id"] for one in content["shown"]] == ["d-0", "d-1", "d-2", "d-3"]
    text = run("show", stem, "--document", 1, "--tokenizer", tokenizer.folder).stdout
    assert "\\x1b[31m" in text and "\\u202e" in text
    assert "\x1b" not in text and "\u202e" not in text


def test_a_window_names_the_documents_in_it(packed):
    stem, tokenizer, documents = packed
    joined = [n for d in documents for s in d for n in s]
    size = len(documents[0][0])
    text, found = window(IndexedReader(stem), size - 2, len(joined) - size + 2, tokenizer)
    assert text == tokenizer.decode(joined[size - 2 :], keep_special=True)
    assert [(one.document, one.offset) for one in found] == [(0, size - 2), (1, 0), (3, 0)]
    assert [one.provenance["id"] for one in found] == ["d-0", "d-1", "d-3"]
    ran = run("window", stem, "--start", 1, "--length", 3, "--json")
    content = json.loads(ran.stdout)
    assert content["documents"][0]["ids"] == joined[1:4]
    assert content["methods"] == {"d": 3}
    with pytest.raises(DataError, match=f"the dataset has {len(joined)}"):
        window(IndexedReader(stem), 0, len(joined) + 1, None)
    with pytest.raises(DataError, match="no documents 2 to 4"):
        show(IndexedReader(stem), 2, 5, None)


def test_ids_of_another_tokenizer_are_refused(packed, tmp_path):
    _, tokenizer, _ = packed
    other = write_stock(tmp_path / "d", [[[1, 50_000]]])
    with pytest.raises(DataError, match="holds token 50000"):
        show(IndexedReader(other), 0, 1, tokenizer)


def _first(tmp_path, a, b, dtype=np.int32, modes=(False, False)):
    one = write_stock(tmp_path / "a", a, modes=modes[0])
    other = write_stock(tmp_path / "b", b, dtype, modes[1])
    return compare(IndexedReader(one), IndexedReader(other))


def test_the_first_difference_is_named(tmp_path):
    base = [[[1] * 20], [], [[2, 3], [4]], [[5]]]
    assert _first(tmp_path, base, base).identical
    other = _first(tmp_path, base, [[[1] * 15 + [9] * 5], *base[1:]])
    assert other.facts == {}
    assert (other.first.document, other.first.token, other.first.what) == (0, 15, "ids")
    assert (other.first.start, other.first.ids_b) == (7, [1] * 8 + [9] * 5)
    other = _first(tmp_path, base, [*base[:3], [[5, 6]]])
    assert (other.first.document, other.first.token, other.first.what) == (3, 1, "length")
    assert other.facts == {"tokens": (24, 25)}
    other = _first(tmp_path, base, [*base[:2], [[2], [3, 4]], base[3]])
    assert (other.first.document, other.first.what) == (2, "sequences")
    other = _first(tmp_path, base, base[:3])
    assert (other.first.document, other.first.what, other.first.ids_b) == (3, "missing", [])
    other = _first(tmp_path, base, base, np.uint16)
    assert (other.facts, other.first) == ({"dtype": ("int32", "uint16")}, None)
    other = _first(tmp_path, base, base, modes=(False, True))
    assert (other.facts, other.first) == ({"multimodal": (False, True)}, None)
    a = write_stock(tmp_path / "a", [[[1], [2]]], modes=True)
    b = write_stock(tmp_path / "b", [[[1], [2]]], modes=True)
    content = bytearray((tmp_path / "b.idx").read_bytes())
    content[-1] ^= 1
    (tmp_path / "b.idx").write_bytes(bytes(content))
    assert compare(IndexedReader(a), IndexedReader(b)).first.what == "modes"


def test_the_tool_compares_merges_and_splits(packed, tmp_path):
    stem, tokenizer, _ = packed
    ran = run("split", stem, "--parts", 2, "--out", tmp_path / "half", "--json")
    parts = [part["prefix"] for part in json.loads(ran.stdout)["parts"]]
    ran = run("merge", *parts, "--out", tmp_path / "both")
    assert "4 documents" in ran.stdout and ".provenance.parquet" in ran.stdout
    assert run("compare", stem, tmp_path / "both").stdout == "identical\n"
    ran = run("compare", stem, parts[1], "--tokenizer", tokenizer.folder, status=1)
    assert "first difference: document 0" in ran.stdout
    ran = run("compare", stem, parts[1], "--json", status=1)
    assert json.loads(ran.stdout)["identical"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "absent"), "no indexed dataset"),
        (("show", "STEM", "--document", "9"), "no documents 9 to 9: the dataset has 4"),
        (("show", "STEM", "--documents", "x"), "'x' is no range"),
        (("split", "STEM", "--out", "OUT"), "give either parts or tokens"),
    ],
)
def test_mistakes_are_one_message_and_exit_status_2(packed, tmp_path, arguments, message):
    names = {"STEM": str(packed[0]), "OUT": str(tmp_path / "o")}
    ran = run(*(names.get(a, a) for a in arguments), "--json", status=2)
    assert message in ran.stderr
    assert ran.stdout == ""
