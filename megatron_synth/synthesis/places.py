"""Where the files of a synthesis step lie."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Places:
    """Where the files of a step lie."""

    out: Path
    work: Path

    def log(self, shard: int) -> Path:
        """A shard's request log, part of the product."""
        return self.out / f"requests-{shard:05d}.log"

    def state(self, shard: int) -> Path:
        """How far a shard is."""
        return self.work / f"state-{shard:05d}.json"

    def error(self, shard: int) -> Path:
        """What ended a shard, for the driver to raise."""
        return self.work / f"error-{shard:05d}.json"

    def kept(self, shard: int) -> Path:
        """Documents of a shard that passed the filters."""
        return self.work / f"kept-{shard:05d}.jsonl.zst"

    def dropped(self, shard: int) -> Path:
        """Documents of a shard that did not."""
        return self.work / f"dropped-{shard:05d}.jsonl.zst"

    def counts(self, shard: int) -> Path:
        """Written last: a shard that has it is done."""
        return self.work / f"counts-{shard:05d}.json"
