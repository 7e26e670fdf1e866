"""The contract of a method: source documents in; requests; answers; documents out.

A method is a list of items, one for each document to be made, and a way to write one of them.
Writing is a coroutine: it yields requests, gets their answers, may ask again, and returns the
document. Several steps, several requests at once and repeated questions are plain control flow.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from megatron_synth.corpus import Document
from megatron_synth.engines import Completion, Request, Sampling
from megatron_synth.runs import hash_json

Writing = Generator[list[Request], list[Completion], Document]
"""Yields requests, is sent their completions in the same order, returns the document."""


@dataclass(frozen=True)
class Item:
    """One document to be made.

    Attributes:
        index: Position j in the method's sequence.
        source_row: Row of the source document in the seed store; None without a source.
        source_id: Id of the source document; None without a source.
        generation: How many items before this one had the same source.
        seed: From it come the sampling seeds of all requests of the item.
    """

    index: int
    source_row: int | None
    source_id: str | None
    generation: int
    seed: int


class Method(Protocol):
    """A way to make documents. One file each, under `methods/`."""

    name: str
    total: int | None
    """Items over all shards; None without end."""

    def items(self, shard: int, shards: int) -> Iterator[Item]:
        """The items of one shard, in the order of their index; the shards share all items out.

        Item j depends on the settings and on j alone: never on the number of shards, on answers,
        or on a restart.
        """
        ...

    def write(self, item: Item) -> Writing:
        """Write the document of `item`.

        What is asked depends on the item and on the answers so far alone: after a restart the
        same coroutine runs again, with the committed answers out of the log. No yield is empty,
        and no key comes twice. A permanent failure comes as a completion with `error`; passing
        ones are asked again outside.

        The document carries its provenance (METHODS 1); `token_counts["text"]` holds the tokens
        of its text. Without a usable answer it has no text and the finish reason `error`, and
        `metadata["failure"]` names why (see `filters.REASONS`); the filters drop it.
        """
        ...

    def source_text(self, item: Item) -> str:
        """Text of the source document; empty without a source."""
        ...

    def count_inputs(self) -> dict[str, int]:
        """What became of source documents that did not fit, by name, for the counts."""
        ...


def request_key(
    *,
    document: str | None,
    method: str,
    generation: int,
    prompt: str | list[int],
    sampling: Sampling,
    generator: str,
    part: str | None = None,
    attempt: int | None = None,
    system: str | None = None,
) -> str:
    """The key of a request (DESIGN, Exactly once): 32 hex digits.

    Args:
        document: Id of the source.
        method: Its name.
        generation: Of the item.
        prompt: All of it.
        sampling: All of it, the seed included.
        generator: Name and fingerprint.
        part: Which of the item's questions, where it has several.
        attempt: 0 for the first try, where answers may be unparseable.
        system: System message before the prompt.
    """
    content: dict[str, Any] = {
        "document": document,
        "method": method,
        "generation": generation,
        "prompt": hash_json(prompt),
        "sampling": sampling.as_dict(),
        "generator": generator,
    }
    if part is not None:
        content["part"] = part
    if attempt is not None:
        content["attempt"] = attempt
    if system:
        content["system"] = hash_json(system)
    return hash_json(content)
