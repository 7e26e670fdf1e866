"""Packed corpora for the tests, written by Megatron-Core's own builder."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

EOS = 0


def _write(prefix: Path, documents: Sequence[Sequence[int]], dtype: type = np.int32) -> Path:
    """Write `documents` as PREFIX_text_document.bin/.idx and return the prefix."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}_text_document.bin", dtype=dtype)
    for document in documents:
        builder.add_document(torch.tensor(document, dtype=torch.int64), [len(document)])
    builder.finalize(f"{prefix}_text_document.idx")
    return prefix


def _distinct_documents(lengths: Sequence[int], first: int = 1) -> list[list[int]]:
    """Documents in which no token but the last, EOS, occurs twice, anywhere."""
    documents, token = [], first
    for length in lengths:
        documents.append([*range(token, token + length - 1), EOS])
        token += length - 1
    return documents


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., Path]:
    """make_corpus(name, lengths) -> prefix of a corpus with those document lengths."""

    def make(name: str, lengths: Sequence[int], first: int = 1) -> Path:
        return _write(tmp_path / name, _distinct_documents(lengths, first))

    return make


@pytest.fixture
def write_corpus() -> Callable[[Path, Sequence[Sequence[int]]], Path]:
    """write_corpus(prefix, documents) -> prefix of a corpus that holds these documents."""
    return _write
