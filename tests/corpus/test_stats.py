"""Figures about a corpus, each against a count by hand."""

import collections
import json
import unicodedata
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_synth.config import DataError
from megatron_synth.corpus import (
    Document,
    NearDuplicatesConfig,
    check_corpus,
    corpus_stats,
    write_documents,
)
from megatron_synth.corpus.lengths import describe_lengths
from megatron_synth.corpus.scripts import count_scripts
from megatron_synth.tokens import train_tokenizer


def test_documents_lengths_tokens_and_duplicates(tmp_path):
    words = [f"{a}{b}" for a in "bdfg" for b in "aeiou"]
    base = " ".join(words)
    texts = [base, "é" * 10, base, f"{base} and more", ""]
    write_documents(tmp_path / "in.parquet", [Document(str(k), t) for k, t in enumerate(texts)])
    tokenizer = train_tokenizer(texts, 300, tmp_path / "tokenizer")
    found = corpus_stats(
        str(tmp_path / "in.parquet"),
        tokenizer=tokenizer,
        near_duplicates=NearDuplicatesConfig(threshold=0.7),
    )
    assert (found.rows, found.documents, found.bad) == (5, 5, 0)
    assert found.characters.total == sum(map(len, texts))
    assert found.bytes.total == sum(len(t.encode()) for t in texts)
    assert found.tokens.total == sum(map(len, tokenizer.encode_batch(texts)))
    assert (found.duplicates, found.near_duplicates) == (1, 1)
    assert found.scripts == {"LATIN": 1.0}
    assert corpus_stats(str(tmp_path / "in.parquet")).near_duplicates is None


@given(lengths=st.lists(st.integers(0, 2**40), min_size=1, max_size=50))
def test_lengths_agree_with_a_plain_count(lengths):
    found = describe_lengths(lengths)
    assert (found.total, found.min, found.max) == (sum(lengths), min(lengths), max(lengths))
    assert found.percentiles["50"] == sorted(lengths)[(len(lengths) - 1) // 2]
    for name, count in found.histogram.items():
        low, _, high = name.partition("-")
        assert count == sum(int(low) <= n <= int(high or low) for n in lengths)
    assert sum(found.histogram.values()) == len(lengths)


def test_no_documents_have_no_lengths():
    assert describe_lengths([]).model_dump() == {
        "total": 0,
        "mean": 0.0,
        "min": 0,
        "max": 0,
        "percentiles": {},
        "histogram": {},
    }


def test_letters_are_counted_by_script():
    text = "abC, это, 中文字, αβ, 12 ½ ª あ\u0301"
    assert count_scripts(text) == {"LATIN": 3, "CYRILLIC": 3, "CJK": 3, "GREEK": 2, "HIRAGANA": 1}


@given(text=st.text())
def test_every_letter_with_a_script_is_counted_once(text):
    letters = sum(unicodedata.category(c)[0] == "L" for c in text)
    shared = ("MODIFIER", "MASCULINE", "FEMININE")
    without = sum(
        unicodedata.category(c)[0] == "L"
        and unicodedata.name(c, "UNKNOWN").startswith((*shared, "UNKNOWN"))
        for c in text
    )
    assert count_scripts(text).total() == letters - without


BAD = ["{", '{"text": 1}', "{", '{"id": 3}', '{"text": "\\ud800"}', '{"text": "a\\u0000"}']


def test_bad_rows_are_counted_by_reason_with_their_places(tmp_path):
    path, listed = tmp_path / "in.jsonl", tmp_path / "bad.jsonl"
    path.write_text("\n".join(['{"text": "fine"}', *BAD]))
    found = check_corpus(str(path), limit=0.5, list_file=listed)
    assert (found.rows, found.documents, found.bad, found.passed) == (7, 1, 6, False)
    reasons = {bad.reason: (bad.rows, bad.first) for bad in found.bad_rows}
    assert reasons["not valid JSON"] == (2, (f"{path}:2", f"{path}:4"))
    assert collections.Counter({r: n for r, (n, _) in reasons.items()}).total() == 6
    assert [json.loads(row)["line"] for row in listed.read_text().splitlines()] == [
        2,
        3,
        4,
        5,
        6,
        7,
    ]
    assert corpus_stats(str(path)).bad_rows == found.bad_rows


def test_a_share_at_the_limit_passes_and_first_places_are_few(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(['{"text": "fine"}'] * 20 + ["{"] * 20))
    found = check_corpus(str(path), limit=0.5)
    assert found.passed
    assert len(found.bad_rows[0].first) == 5


def test_nothing_to_read_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        corpus_stats(str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_checking_no_rows_is_a_data_error(tmp_path, content):
    (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(DataError, match="there are no rows"):
        check_corpus(str(tmp_path / "in.jsonl"))


def test_long_documents_are_not_held_together(tmp_path):
    class Tokenizer:
        batches: ClassVar[list[int]] = []

        def encode_batch(self, texts):
            self.batches.append(len(texts))
            return [[1]] * len(texts)

    write_documents(tmp_path / "in.jsonl", [Document(str(k), "x" * 600_000) for k in range(6)])
    corpus_stats(str(tmp_path / "in.jsonl"), tokenizer=Tokenizer())
    assert Tokenizer.batches == [2, 2, 2]


def test_lengths_accept_numpy():
    assert describe_lengths(np.array([1, 2, 3])).histogram == {"1": 1, "2-3": 2}
