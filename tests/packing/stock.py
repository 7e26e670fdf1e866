"""Datasets written by stock Megatron-Core, with what this project puts beside them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from megatron_synth.runs import hash_file, hash_json

DOCUMENTS = st.lists(
    st.lists(st.lists(st.integers(0, 60_000), max_size=9), max_size=3), min_size=1, max_size=9
)
"""Documents of sequences of ids: empty documents, empty sequences, several sequences."""
DTYPES = st.sampled_from([np.uint16, np.int32])


def write_stock(stem: Path, documents, dtype=np.int32, modes=False) -> Path:
    """Write STEM.bin and STEM.idx with Megatron-Core's own builder."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{stem}.bin", dtype=dtype, multimodal=modes)
    for document in documents:
        for number, sequence in enumerate(document):
            builder.add_item(torch.tensor(sequence, dtype=torch.int64), number % 2)
        builder.end_document()
    builder.finalize(f"{stem}.idx")
    return stem


def merge_stock(stems, out: Path, dtype=np.int32, modes=False) -> Path:
    """What Megatron-LM's merge_datasets.py does."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{out}.bin", dtype=dtype, multimodal=modes)
    for stem in stems:
        builder.add_index(str(stem))
    builder.finalize(f"{out}.idx")
    return out


def put_beside(stem: Path, documents, dtype=np.int32, info=True, **settings) -> None:
    """Write the side table and, if asked for, the `.json`."""
    name = stem.name.removesuffix("_text_document")
    rows = [{"id": f"{name}-{i}", "source_id": None, "method": name} for i in range(len(documents))]
    schema = pa.schema([(n, pa.string()) for n in ("id", "source_id", "method")])
    pq.write_table(pa.Table.from_pylist(rows, schema), f"{stem}.provenance.parquet")
    lengths = [len(s) for d in documents for s in d]
    files = [hash_file(Path(f"{stem}.{ending}")) for ending in ("bin", "idx")]
    content = {
        "documents": len(documents),
        "tokens": sum(lengths),
        "text_bytes": 0,
        "dtype": np.dtype(dtype).name,
        "longest": max(lengths, default=0),
        "special_spellings": 0,
        "vocab_size": 60_001,
        "eos_id": 0,
        "bos_id": None,
        "tokenizer": "t",
        "content_hash": hash_json(files),
        "empty_documents": sum(not d for d in documents),
        **settings,
    }
    if info:
        Path(f"{stem}.json").write_text(json.dumps(content))


def pair_bytes(stem) -> tuple[bytes, bytes]:
    """The two files."""
    return Path(f"{stem}.bin").read_bytes(), Path(f"{stem}.idx").read_bytes()
