"""Decide about each document of an import, in order, and count why.

A document goes through: normalisation; length in characters; exact duplicates; benchmark queries
(`decontamination.py`); length in tokens; near-duplicates. The first that objects names the reason.
Only documents that are kept are remembered as what later ones may repeat, so the document that
another "duplicates" always stands in the corpus.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xxhash

from megatron_synth.corpus.blocks import document_blocks
from megatron_synth.corpus.decontamination import Benchmarks, Hit, Query
from megatron_synth.corpus.document import Document
from megatron_synth.corpus.drops import RecordList
from megatron_synth.corpus.near_duplicates import NearDuplicates
from megatron_synth.corpus.normalise import normalise_text
from megatron_synth.corpus.passages import cut_words

if TYPE_CHECKING:
    from megatron_synth.corpus.importing import ImportConfig

REASONS = (
    *("too_short", "too_long", "too_few_tokens", "too_many_tokens"),
    *("duplicates", "near_duplicates", "contaminated", "past_maximum"),
)
"""Why a document was dropped; `past_maximum`: read with others, after `max_documents` were kept."""


@dataclass
class _Candidate:
    """A document on its way; `reason` once it is dropped."""

    document: Document
    text: str
    digest: bytes = b""
    reason: str | None = None
    duplicate_of: str | None = None
    queries: tuple[Query, ...] = ()


class Filters:
    """Keeps or drops documents; memory is 0.3 KB a kept document, and see `NearDuplicates`.

    Args:
        config: Of the import.
        dropped: Takes `id`, `reason` and, of a duplicate, `duplicate_of`, for each dropped one.
        contaminated: Takes `id`, `benchmark`, `query`, `action` for each query met and, where the
            document was dropped, the `reason`.

    The id of a document that is kept is that of the corpus, of one that is dropped that of the
    input.
    """

    def __init__(
        self, config: "ImportConfig", dropped: RecordList, contaminated: RecordList
    ) -> None:
        self._config = config
        self._dropped = dropped
        self._contaminated = contaminated
        self._texts: dict[bytes, str] = {}
        self._ids: set[bytes] = set()
        self._next_number: dict[bytes, int] = {}
        self._drops: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        self._changed: Counter[str] = Counter(dict.fromkeys(config.normalise, 0))
        self._hits: Counter[str] = Counter()
        self._kept = self._renamed = self._characters = self._bytes = 0
        self._tokens = self._cut = 0
        self._benchmarks = Benchmarks(config.decontaminate) if config.decontaminate else None
        self._near = NearDuplicates(config.near_duplicates) if config.near_duplicates else None
        self._tokenizer = _load_tokenizer(config.tokenizer)

    def keep(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield what goes into the corpus, in order, at most `max_documents`."""
        for block in document_blocks(documents):
            yield from self._keep_block(block)
            if self._full():
                return

    def counts(self) -> dict[str, Any]:
        """What was dropped, changed and kept."""
        counts: dict[str, Any] = {
            **self._drops,
            "renamed": self._renamed,
            "changed": dict(self._changed),
            "characters": self._characters,
            "bytes": self._bytes,
        }
        if self._tokenizer is not None:
            counts["tokens"] = self._tokens
        if self._benchmarks is not None:
            counts["benchmarks"] = dict(self._benchmarks.counts)
            counts["contaminated_by"] = dict(self._hits)
            counts["cut"] = self._cut
        return counts

    def dropped(self) -> str:
        """The drops in words."""
        return ", ".join(f"{n:,} {why.replace('_', ' ')}" for why, n in self._drops.items() if n)

    def _full(self) -> bool:
        return self._config.max_documents is not None and self._kept >= self._config.max_documents

    def _keep_block(self, documents: Sequence[Document]) -> Iterator[Document]:
        block = [
            _Candidate(d, normalise_text(d.text, self._config.normalise, self._changed))
            for d in documents
        ]
        for candidate in block:
            self._judge_text(candidate)
        self._decontaminate(block)
        alive = [c for c in block if c.reason is None]
        texts = [c.text for c in alive]
        tokens = self._tokenizer.encode_batch(texts) if self._tokenizer is not None else None
        signatures = self._near.signatures(texts) if self._near is not None else None
        place = 0
        for candidate in block:
            if candidate.reason is None:
                length = None if tokens is None else len(tokens[place])
                signature = None if signatures is None else signatures[place]
                place += 1
                self._judge_again(candidate, length, signature)
                if candidate.reason is None:
                    document = self._register(candidate, length, signature)
                    self._list_queries(candidate, document.id)
                    yield document
                    continue
            self._drop(candidate)

    def _judge_text(self, candidate: _Candidate) -> None:
        config, length = self._config, len(candidate.text)
        if length < config.min_characters:
            candidate.reason = "too_short"
        elif config.max_characters is not None and length > config.max_characters:
            candidate.reason = "too_long"
        elif not config.keep_duplicates:
            candidate.digest = xxhash.xxh3_128_digest(candidate.text.encode())
            self._find_duplicate(candidate)

    def _find_duplicate(self, candidate: _Candidate) -> None:
        first = self._texts.get(candidate.digest) if candidate.digest else None
        if first is not None:
            candidate.reason, candidate.duplicate_of = "duplicates", first

    def _decontaminate(self, block: Sequence[_Candidate]) -> None:
        config = self._config.decontaminate
        if self._benchmarks is None or config is None:
            return
        asked = [c for c in block if c.reason is None]
        for candidate, hit in zip(
            asked, self._benchmarks.hits([c.text for c in asked]), strict=True
        ):
            if hit is None:
                continue
            candidate.queries = hit.queries
            self._hits.update({query.benchmark for query in hit.queries})
            if config.action == "drop":
                candidate.reason = "contaminated"
            else:
                self._cut += 1
                candidate.text = self._without(candidate.text, hit)
                self._judge_text(candidate)

    def _without(self, text: str, hit: Hit | None) -> str:
        """The text without shared passages; joining two ends may make a new one."""
        assert self._benchmarks is not None
        while hit is not None:
            text = cut_words(text, hit.grams)
            (hit,) = self._benchmarks.hits([text])
        return text

    def _list_queries(self, candidate: _Candidate, identity: str) -> None:
        for query in candidate.queries:
            assert self._config.decontaminate is not None
            self._contaminated.add(
                id=identity,
                benchmark=query.benchmark,
                query=query.id,
                action=self._config.decontaminate.action,
                reason=candidate.reason,
            )

    def _judge_again(self, candidate: _Candidate, tokens: int | None, signature: Any) -> None:
        config = self._config
        if self._full():
            candidate.reason = "past_maximum"
            return
        self._find_duplicate(candidate)  # of a document that stood in this block before it
        if candidate.reason is not None:
            return
        if tokens is not None and tokens < (config.min_tokens or 0):
            candidate.reason = "too_few_tokens"
        elif tokens is not None and config.max_tokens is not None and tokens > config.max_tokens:
            candidate.reason = "too_many_tokens"
        elif self._near is not None:
            first = self._near.find(signature)
            if first is not None:
                candidate.reason, candidate.duplicate_of = "near_duplicates", first

    def _register(self, candidate: _Candidate, tokens: int | None, signature: Any) -> Document:
        identity = self._unique(candidate.document.id)
        if candidate.digest:
            self._texts[candidate.digest] = identity
        if self._near is not None:
            self._near.add(identity, signature)
        self._kept += 1
        self._tokens += tokens or 0
        self._characters += len(candidate.text)
        self._bytes += len(candidate.text.encode())
        document = candidate.document
        parts = document.parts if candidate.text == document.text else None
        return dataclasses.replace(document, id=identity, text=candidate.text, parts=parts)

    def _drop(self, candidate: _Candidate) -> None:
        assert candidate.reason is not None
        self._drops[candidate.reason] += 1
        self._list_queries(candidate, candidate.document.id)
        self._dropped.add(
            id=candidate.document.id,
            reason=candidate.reason,
            duplicate_of=candidate.duplicate_of,
        )

    def _unique(self, identity: str) -> str:
        """An id that no document before it has: `ID`, else `ID#2`, `ID#3` and so on."""
        given = digest = xxhash.xxh3_128_digest(identity.encode())
        if digest not in self._ids:
            self._ids.add(digest)
            return identity
        number = self._next_number.get(given, 2)  # all below it are taken
        while (digest := xxhash.xxh3_128_digest(f"{identity}#{number}".encode())) in self._ids:
            number += 1
        self._next_number[given] = number + 1
        self._renamed += 1
        self._ids.add(digest)
        return f"{identity}#{number}"


def _load_tokenizer(name: str | None) -> Any:
    if name is None:
        return None
    from megatron_synth.tokens import Tokenizer

    return Tokenizer.load(name)
