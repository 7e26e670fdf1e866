"""The contract of a method: seeds in; requests; answers; documents out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from megatron_synth.corpus import Document
from megatron_synth.engines import Completion, Request, Sampling
from megatron_synth.runs import hash_json


@dataclass(frozen=True)
class Ask:
    """One request with what its answer must remember.

    Attributes:
        index: Position j in the method's sequence of requests.
        source_row: Row of the source document in the seed store.
        source_id: Id of the source document.
        generation: How many requests before this one had the same source.
        prompt: Name and content hash of the prompt, `name@hash`; None without a prompt text.
        request: What the engine gets.
    """

    index: int
    source_row: int
    source_id: str
    generation: int
    prompt: str | None
    request: Request


class Method(Protocol):
    """A way to make documents out of documents. One file each, under `methods/`."""

    name: str

    def asks(self, shard: int, shards: int) -> Iterator[Ask]:
        """The requests with index ≡ `shard` (mod `shards`), in order, without end.

        Request j depends on the settings and on j alone: never on the number of shards, on other
        answers, or on a restart.
        """
        ...

    def document(self, ask: Ask, completion: Completion) -> Document:
        """The document that an answer makes, with its provenance (METHODS 1).

        `token_counts["text"]` holds the tokens of its text. An answer without a usable text makes
        a document with an empty one; the filters then drop it.
        """
        ...

    def source_text(self, ask: Ask) -> str:
        """Text of the source document."""
        ...


def request_key(
    *,
    document: str,
    method: str,
    generation: int,
    prompt: str | list[int],
    sampling: Sampling,
    generator: str,
) -> str:
    """The key of a request (DESIGN, Exactly once): 32 hex digits."""
    content: dict[str, Any] = {
        "document": document,
        "method": method,
        "generation": generation,
        "prompt": hash_json(prompt),
        "sampling": sampling.as_dict(),
        "generator": generator,
    }
    return hash_json(content)
