"""`tokenizer_config.json`: which tokens end and begin a document."""

import json
from pathlib import Path
from typing import Any

from megatron_synth.config import DataError

CONFIG = "tokenizer_config.json"


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file whose top level is an object.

    Raises:
        DataError: It is not JSON, or not an object.
        FileNotFoundError: It is absent.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}", where=path) from error
    if not isinstance(loaded, dict):
        raise DataError("the top level must be a JSON object", where=path)
    return loaded


def token_of(config: dict[str, Any], role: str) -> object:
    """What the config names for `eos_token` or `bos_token`: a string, or whatever stands there."""
    entry = config.get(role)
    return entry.get("content") if isinstance(entry, dict) else entry


def refuse_role(role: str, entry: object, where: Path) -> DataError:
    """The error for a role whose token the tokenizer does not have."""
    return DataError(
        f"{role} is {entry!r}, which is no token of this tokenizer",
        where=where,
        fix=f"Set {role} to one of its special tokens: documents must end with EOS.",
    )
