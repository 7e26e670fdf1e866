"""Corpora whose documents are not one sequence each: none, empty ones, several."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_synth.blending import BlendConfig, BlendedStreams, corpus_size, solve
from megatron_synth.blending.pairs import PairWindows
from megatron_synth.blending.recount import audit
from megatron_synth.config import DataError

S = 8


def _write(stem, documents, dtype=np.int32):
    builder = IndexedDatasetBuilder(f"{stem}.bin", dtype=dtype)
    for document in documents:
        for sequence in document:
            builder.add_item(torch.tensor(sequence, dtype=torch.int64))
        builder.end_document()
    builder.finalize(f"{stem}.idx")
    return stem


def _numbered(shapes):
    """Documents whose tokens are 1, 2, 3, … over the whole corpus."""
    documents, token = [], 1
    for shape in shapes:
        documents.append([])
        for length in shape:
            documents[-1].append(list(range(token, token + length)))
            token += length
    return documents, token - 1


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=70),
    empty=st.integers(0, 70),
    reshuffle=st.booleans(),
)
def test_every_token_is_served_once_an_epoch_whatever_the_documents_are(
    tmp_path_factory, shapes, empty, reshuffle
):
    documents, tokens = _numbered([*shapes, *[[]] * empty])
    if tokens <= S:
        return
    stem = _write(tmp_path_factory.mktemp("b") / "c", documents)
    size = corpus_size(stem)
    assert (size.tokens, size.documents) == (tokens, len(documents))
    config = BlendConfig.model_validate(
        {
            "sequence_length": S,
            "global_batch_size": 1,
            "seed": 3,
            "corpora": {"c": {"epochs": 2, "reshuffle": reshuffle}},
        }
    )
    plan = solve(config, {"c": size})
    whole = (tokens - 1) // S
    streams = BlendedStreams(plan, {"c": stem})
    starts = {document[0] for d in documents if (document := [n for s in d for n in s])}
    ends = {document[-1] for d in documents if (document := [n for s in d for n in s])}
    for epoch in range(2):
        served = Counter()
        for number in range(epoch * whole, (epoch + 1) * whole):
            served.update(streams[number]["tokens"].tolist())
            pairs = zip(streams[number]["tokens"], streams[number]["labels"], strict=True)
            for one, following in pairs:
                assert following == one + 1 or (int(one) in ends and int(following) in starts)
        assert set(served.values()) == {1}
        assert sum(served.values()) == whole * S
    found = audit(plan, {"c": stem}, plan.steps)
    assert found.passed, found.faults


def test_datasets_of_floats_are_refused(tmp_path):
    stem = _write(tmp_path / "c", [[[1, 2, 3]]], np.float32)
    with pytest.raises(DataError, match="float32 values"):
        corpus_size(stem)


def test_a_corpus_of_empty_documents_is_empty(tmp_path):
    with pytest.raises(DataError, match="no tokens in its 3 documents"):
        corpus_size(_write(tmp_path / "c", [[], [[]], []]))


def _pairs(tmp_path, pairs):
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"d1": [a for a, _ in pairs], "d2": [b for _, b in pairs]}), path)
    return path


def test_pairs_pass_over_empty_documents(tmp_path):
    stem = _write(tmp_path / "c", [[], [[5, 6, 0]], [], [[7, 0]], []])
    ids = {"sequence_length": S, "eos_id": 0, "separator_id": 99}
    windows = PairWindows(stem, _pairs(tmp_path, [(1, 3)]), **ids)
    assert windows[0]["tokens"].tolist() == [5, 6, 99, 7, 0, 0, 0, 0]
    with pytest.raises(DataError, match="pairs 2 documents that hold no tokens, the first is 0"):
        PairWindows(stem, _pairs(tmp_path, [(1, 3), (0, 4), (1, 4)]), **ids)


def test_pairs_refuse_documents_of_several_sequences_and_say_how_many(tmp_path):
    # As many sequences as documents: counting alone would not see it.
    stem = _write(tmp_path / "c", [[[1, 2], [3, 0]], [], [[4, 0]]])
    with pytest.raises(DataError, match="1 of 3 documents have several sequences"):
        PairWindows(stem, _pairs(tmp_path, [(0, 2)]), sequence_length=S, eos_id=0, separator_id=99)
