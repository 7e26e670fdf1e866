"""Content hashes: xxh3 (128 bits), as hex."""

import json
from pathlib import Path
from typing import Any

import xxhash

_BLOCK = 1 << 22


def hash_file(path: Path) -> str:
    """Hash a file's bytes; 32 hex digits."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def hash_json(content: Any) -> str:
    """Hash anything that JSON can hold; the order of keys does not matter."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    # Names of files may hold lone surrogates: bytes that are no UTF-8.
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))
