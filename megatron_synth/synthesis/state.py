"""How far a shard is: a small file that the worker writes and the driver shows."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class ShardState:
    """What a shard has done; written to a small file as it goes, for whoever shows progress.

    Attributes:
        settled: Items whose document is written, kept or not.
        kept: Documents that passed the filters,
        kept_tokens: and their tokens as packed.
        dropped: The others, by reason.
        new_output_tokens: Tokens generated over all tries, and
        seconds: the time that took, without the engine's start.
    """

    settled: int = 0
    kept: int = 0
    kept_tokens: int = 0
    new_output_tokens: int = 0
    seconds: float = 0.0
    dropped: dict[str, int] = field(default_factory=dict)


def write_state(path: Path, state: ShardState) -> None:
    """Replace the file; whoever reads it sees the old state or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(state)), encoding="utf-8")
    temporary.replace(path)


def read_state(path: Path) -> ShardState:
    """What a shard wrote last."""
    return ShardState(**json.loads(path.read_text(encoding="utf-8")))
