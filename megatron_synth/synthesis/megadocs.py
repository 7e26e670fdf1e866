"""Megadocs: a document and what was generated from it, as one long document (METHODS 1).

`stitch` joins texts: the generations in random order, then the document itself. `stretch` puts
rationales back where latent thoughts were asked for: piece 0, <think> rationale 1 </think>,
piece 1, … piece G. No model is asked. (Megadocs 4.1, 4.2.)
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from megatron_synth.config import Config, DataError
from megatron_synth.corpus import Document, document_writer, read_documents
from megatron_synth.corpus.document import PART_BREAK
from megatron_synth.corpus.holding_out import seeded_hash
from megatron_synth.runs import Progress, get_logger
from megatron_synth.synthesis.card import CARD, write_megadocs_card
from megatron_synth.synthesis.grouping import Groups, Member, SeenIds
from megatron_synth.synthesis.pieces import CUT, cut_text

MEGADOCS = "documents.jsonl.zst"
_SPOOL = ".generated.tmp"
_TAG = re.compile(r"</?think>")
_SHOW_EVERY = 256

_log = get_logger(__name__)

Kind = Literal["stitch", "stretch"]


class MegadocsConfig(Config):
    """How megadocs are made."""

    kind: Kind
    """`stitch` works on any documents with a `source_id`, `stretch` on those of
    `latent_thoughts`."""
    real: Literal["last", "first", "none"] = "last"
    """`stitch`: where the document itself stands. The paper found `last` best."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """`stitch`: decides the order of the generations; no document's order depends on another's."""
    licence: str | None = None
    """What the card says of the licence."""
    unknown_limit: float = Field(default=0.01, ge=0, le=1)
    """Share of generated documents that may come from a source which is not among the documents,
    before the step fails."""


def build_megadocs(
    config: MegadocsConfig,
    documents: str | Path,
    generated: str | Path | Iterable[str | Path],
    out: Path,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write `documents.jsonl.zst` into `out`, a megadoc for each document, in their order, and a
    dataset card.

    Equal inputs and settings give equal bytes, whatever the order of the generated documents. A
    killed try leaves nothing under the final name; the next one starts over. Memory: 40 bytes a
    document and 20 a generated one. Disk: the generated texts once more, uncompressed, meanwhile.

    Args:
        config: Which kind.
        documents: The organic documents: a file, folder or glob.
        generated: What was generated from them: one or several files, folders or globs.
        out: A folder; it is made.
        progress: Is told the documents done.

    Returns:
        Counts: documents (megadocs), characters of them, members (generated documents in them),
        member_tokens (of these, as their generators counted them; packing counts all), made_by
        (methods, generators and prompts of the members), unknown_sources (generated documents
        whose source is not there), without_generations (documents that stand alone; with `real:
        none` they are left out), by_generations (documents by how many they had), and of
        `stretch` missing_rationales and tags_removed.

    Raises:
        DataError: An id occurs twice, a generated document names no source, too many name an
            unknown one, a rationale has no place in its document, or nothing can be written.
        RunError: The disk is full.
    """
    progress = progress or Progress()
    out.mkdir(parents=True, exist_ok=True)
    sources = [generated] if isinstance(generated, (str, Path)) else list(generated)
    progress.phase("reading the generated documents")
    every = (document for source in sources for document in read_documents(source))
    build = _Build(config)
    try:
        with closing(Groups(every, out / _SPOOL)) as groups:
            progress.phase("building megadocs", None, "documents")
            with document_writer(out / MEGADOCS) as sink:
                for megadoc in build.megadocs(read_documents(documents), groups):
                    sink.write(megadoc)
                    if sink.count % _SHOW_EVERY == 0:
                        progress.update(sink.count)
                build.check(groups.count)
    finally:
        (out / _SPOOL).unlink(missing_ok=True)
    write_megadocs_card(out / CARD, config, build.counts, read_documents(out / MEGADOCS), MEGADOCS)
    return build.counts


class _Build:
    """Makes megadocs and counts."""

    def __init__(self, config: MegadocsConfig) -> None:
        self._config = config
        self._seen = SeenIds()
        self._by_generations: Counter[int] = Counter()
        self._totals: Counter[str] = Counter()
        self._made_by: dict[str, set[str]] = {
            "methods": set(),
            "generators": set(),
            "prompts": set(),
        }

    def megadocs(self, documents: Iterable[Document], groups: Groups) -> Iterator[Document]:
        """The megadoc of each document."""
        for document in documents:
            self._seen.add(document.id)
            members = groups.of(document.id)
            self._by_generations[len(members)] += 1
            if not members and self._config.kind == "stitch" and self._config.real == "none":
                continue
            self._totals["documents"] += 1
            self._note(members)
            make = self._stitched if self._config.kind == "stitch" else self._stretched
            megadoc = make(document, members)
            self._totals["characters"] += len(megadoc.text)
            yield megadoc

    def _note(self, members: list[Member]) -> None:
        self._totals["members"] += len(members)
        for member in members:
            self._totals["member_tokens"] += member.tokens
            for name, value in (
                ("methods", member.method),
                ("generators", member.generator),
                ("prompts", member.prompt),
            ):
                if value is not None:
                    self._made_by[name].add(value)

    def check(self, generated: int) -> None:
        """Refuse what cannot be a whole result; see `build_megadocs`."""
        repeated = self._seen.count_repeated()
        if repeated:
            raise DataError(
                f"{repeated:,} organic documents have an id that another one has",
                fix="Generated documents name their source by its id. Import the corpus: ids "
                "differ then.",
            )
        if not self._totals["documents"]:
            raise DataError("no megadoc can be made: there are no documents with generations")
        self._totals["unknown_sources"] = unknown = generated - self._totals["members"]
        if unknown > self._config.unknown_limit * generated:
            raise DataError(
                f"{unknown:,} of {generated:,} generated documents come from a source that is not "
                "among the documents",
                fix="Give the documents that they were made from, or raise unknown_limit.",
            )
        if unknown:
            _log.warning("%d generated documents come from an unknown source", unknown)

    @property
    def counts(self) -> dict[str, Any]:
        """See `build_megadocs`."""
        names = ["documents", "characters", "members", "member_tokens", "unknown_sources"]
        if self._config.kind == "stretch":
            names += ["missing_rationales", "tags_removed"]
        return {
            **{name: self._totals[name] for name in names},
            "made_by": {name: sorted(found) for name, found in self._made_by.items()},
            "without_generations": self._by_generations[0],
            "by_generations": {
                str(n): self._by_generations[n] for n in sorted(self._by_generations)
            },
        }

    def _stitched(self, document: Document, members: list[Member]) -> Document:
        seed = self._config.seed
        ordered = sorted(
            members, key=lambda m: (seeded_hash(seed, f"stitch\0{document.id}", m.id), m.id)
        )
        texts = [member.text for member in ordered]
        if self._config.real == "last":
            texts.append(document.text)
        elif self._config.real == "first":
            texts.insert(0, document.text)
        return self._document(document, ordered, PART_BREAK.join(texts), tuple(texts))

    def _stretched(self, document: Document, members: list[Member]) -> Document:
        places = [_place(document, member) for member in members]
        ordered = [
            member
            for _, member in sorted(
                zip(places, members, strict=True),
                key=lambda pair: (pair[0], pair[1].generation or 0, pair[1].id),
            )
        ]
        splits = max((m.notes.get("splits", 0) for m in members), default=0)
        self._totals["missing_rationales"] += max(0, splits - len(set(places)))
        cuts = tuple(sorted(places))
        pieces: list[str] = []
        for piece, member in zip(cut_text(document.text, cuts), [None, *ordered], strict=True):
            if member is not None:
                rationale, tags = _TAG.subn("", member.text)
                self._totals["tags_removed"] += tags
                pieces.append(f"<think>\n{rationale}\n</think>")
            pieces.append(piece)
        return self._document(document, ordered, "".join(pieces), None)

    def _document(
        self,
        document: Document,
        members: list[Member],
        text: str,
        parts: tuple[str, ...] | None,
    ) -> Document:
        generators = sorted({m.generator for m in members if m.generator is not None})
        metadata: dict[str, Any] = {
            "generations": len(members),
            "members": [member.id for member in members],
            "methods": sorted({m.method for m in members if m.method is not None}),
        }
        if len(generators) > 1:
            metadata["generators"] = generators
        requests = [member.notes.get("request") for member in members]
        if members and None not in requests:
            metadata["requests"] = requests
        if self._config.kind == "stitch":
            metadata["real"] = self._config.real
        return Document(
            id=f"{document.id}/{self._config.kind}",
            text=text,
            source_id=document.id,
            method=self._config.kind,
            round=max((m.round for m in members if m.round is not None), default=None),
            generator=generators[0] if len(generators) == 1 else None,
            seed=self._config.seed if self._config.kind == "stitch" else None,
            metadata=metadata,
            parts=parts,
        )


def _place(document: Document, member: Member) -> int:
    """The character of the document at which a rationale stands."""
    place = member.notes.get(CUT)
    if place is None:
        raise DataError(
            f"the generated document {member.id!r} says not where in its source it stands",
            fix="stretch takes the documents of the method latent_thoughts.",
        )
    if not 0 < place < len(document.text):
        raise DataError(
            f"the rationale {member.id!r} stands at character {place:,} of a document of "
            f"{len(document.text):,}",
            fix="Give the very documents that the rationales were made from.",
        )
    return place
