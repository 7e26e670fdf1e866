"""Where the files of a synthesis step lie."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Generated:
    """What is known of a shard once it is generated.

    Attributes:
        parts: Tables that its documents were written to.
        answers: Requests that its log answers, used or not.
        asked_again: Requests that were in flight when a try ended, over all tries.
    """

    parts: int
    answers: int
    asked_again: int


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

    def generated(self, shard: int) -> Path:
        """Written when a shard is generated: in how many parts, and what its log counted."""
        return self.work / f"generated-{shard:05d}.json"

    def ray(self, task: int) -> Path:
        """Names the folder of a Ray of ours; each task of a Slurm array has one."""
        return self.work / f"ray-{task:05d}.txt"

    def table(self, shard: int, part: int) -> Path:
        """Documents on their way to the filters; removed when the part is done."""
        return self.work / f"{_part(shard, part)}.parquet"

    def kept(self, shard: int, part: int) -> Path:
        """Documents that passed the filters."""
        return self.work / f"kept-{_part(shard, part)}.jsonl.zst"

    def dropped(self, shard: int, part: int) -> Path:
        """Documents that did not."""
        return self.work / f"dropped-{_part(shard, part)}.jsonl.zst"

    def counts(self, shard: int, part: int) -> Path:
        """Written last: a part that has it is done."""
        return self.work / f"counts-{_part(shard, part)}.json"

    def read_generated(self, shard: int) -> Generated | None:
        """What is known of a generated shard; None where it is not generated yet."""
        path = self.generated(shard)
        if not path.is_file():
            return None
        return Generated(**json.loads(path.read_text(encoding="utf-8")))

    def open_parts(self, shard: int, parts: int) -> list[int]:
        """Those of a shard's `parts` parts that are not done."""
        return [part for part in range(parts) if not self.counts(shard, part).is_file()]

    def is_done(self, shard: int) -> bool:
        """Whether all of a shard is generated, filtered and written."""
        generated = self.read_generated(shard)
        return generated is not None and not self.open_parts(shard, generated.parts)


def _part(shard: int, part: int) -> str:
    return f"{shard:05d}-{part:05d}"
