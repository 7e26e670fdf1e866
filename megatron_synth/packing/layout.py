r"""How an indexed dataset lies on disk: names, and the layout of the `.idx`.

`.bin`: the ids of all documents, one after another. `.idx`, little-endian: `MMIDIDX\0\0`,
version 1 (uint64), dtype code (uint8), sequences (uint64), documents + 1 (uint64), then a length
(int32) and a byte offset (int64) for each sequence, then the sequence index at which each
document ends (int64), with a 0 before them. Multimodal datasets end in a mode (int8) a sequence.
"""

import re
import struct
from pathlib import Path

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
"""Magic, version, dtype code, sequences, document borders."""
SEQUENCE_BYTES = 12
"""A length and an offset."""
BORDER_BYTES = 8
CODES = {
    "uint8": 1,
    "int8": 2,
    "int16": 3,
    "int32": 4,
    "int64": 5,
    "float64": 6,
    "float32": 7,
    "uint16": 8,
}
"""Codes of all dtypes that Megatron reads; packing chooses between uint16 and int32."""
DTYPES = {code: name for name, code in CODES.items()}
"""Dtype by code."""
ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 8, 7: 4, 8: 2}
"""Bytes a token by dtype code, of all that Megatron reads."""

_TEXT = "text"


def key_stem(prefix: str | Path, key: str) -> Path:
    """`PREFIX_KEY_document`: Megatron-LM's name for the dataset of one key."""
    path = Path(prefix)
    return path.with_name(f"{path.name}_{key}_document")


def with_key(prefix: str | Path) -> Path:
    """`PREFIX_text_document`, whether `prefix` ends so or not."""
    path = Path(prefix)
    return path if path.name.endswith(f"_{_TEXT}_document") else key_stem(path, _TEXT)


def dataset_stem(prefix: str | Path, between: str = "") -> Path:
    """Name of a dataset to be made: `PREFIX` + `between` + `_text_document`.

    A `prefix` that ends in `_KEY_document` keeps that ending.
    """
    path = Path(prefix)
    found = re.search(r"_[^_]+_document\Z", path.name)
    if found is None:
        return key_stem(path.with_name(path.name + between), _TEXT)
    return path.with_name(path.name[: found.start()] + between + found.group())
