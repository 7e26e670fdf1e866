"""How large is a packed corpus, and which content is it?"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_synth.blending.sources import DeclaredSize, SourceConfig
from megatron_synth.config import ConfigError, DataError
from megatron_synth.packing.beside import info_of
from megatron_synth.packing.header import path_prefix
from megatron_synth.packing.layout import with_key
from megatron_synth.packing.reader import IndexedReader
from megatron_synth.runs import hash_file, hash_json

if TYPE_CHECKING:
    from megatron_synth.blending.index_files import IndexFolder

__all__ = ["CorpusSize", "corpus_size", "measure", "nearest_name", "path_prefix", "require_names"]


@dataclass(frozen=True)
class CorpusSize:
    """What a plan needs to know of a corpus.

    Attributes:
        tokens: Token ids in the `.bin`, each document's EOS included.
        documents: Documents in the `.idx`.
        content_hash: Hash of the packed content; None for a corpus that is not made yet, whose
            counts are declared.
        tokenizer: Fingerprint of the tokenizer, where known.
        source: What was measured, for the plan to remember.
    """

    tokens: int
    documents: int
    content_hash: str | None = None
    tokenizer: str | None = None
    source: SourceConfig | None = None


def corpus_size(prefix: str | Path) -> CorpusSize:
    """Measure the corpus at `prefix` (with or without `_text_document`).

    Counts come from the `.idx`, which is read and checked as a whole. Content hash and tokenizer
    come from the `.json` that packing writes beside it; without one, both files are hashed
    (several GB/s), to the same hash, and the tokenizer is unknown.

    Raises:
        DataError: No such dataset, damaged, cut short, empty, or the `.json` is of another one.
    """
    reader = IndexedReader(prefix)
    tokens, documents, index = reader.tokens, reader.documents, reader.paths.idx
    if tokens == 0:
        raise DataError(
            f"the corpus is empty: no tokens in its {documents:,} documents", where=index
        )
    if reader.dtype.kind == "f":
        raise DataError(
            f"holds {reader.dtype.name} values, not token ids",
            where=index,
            fix="Training reads datasets of integers only.",
        )
    info = info_of(reader)
    if info is None:
        content = hash_json([hash_file(reader.paths.bin), hash_file(index)])
        return CorpusSize(tokens, documents, content)
    return CorpusSize(tokens, documents, info.content_hash, info.tokenizer)


def measure(
    source: SourceConfig, *, where: str = "source", folder: "IndexFolder | None" = None
) -> CorpusSize:
    """The size of what `source` means: measured where its data is there, else as declared.

    The content hash of a selection or an order names the corpus, the rule and its files' contents
    together.

    Args:
        source: The corpus.
        where: Its name, for messages.
        folder: Where the node keeps indices.

    Raises:
        ConfigError: Nothing is selected, or the data is not as large as was declared.
        DataError: As `corpus_size`; files of selection or order are missing or do not fit.
    """
    declared = source.declared
    if source.data is None or (declared is not None and not _is_there(source.data)):
        assert declared is not None, "SourceConfig has one of them"
        return CorpusSize(declared.tokens, declared.documents, source=source)
    size = corpus_size(source.data)
    if source.select is not None or source.order is not None:
        size = _narrowed(size, source, folder)
    if declared is not None:
        _compare(size, declared, where)
    return replace(size, source=source)


def _is_there(prefix: Path) -> bool:
    """Whether any file of the dataset is there; a half one is a fault, not a missing one."""
    stems = [prefix, with_key(prefix)] if prefix.name else []
    return any(Path(f"{stem}.{end}").exists() for stem in stems for end in ("bin", "idx"))


def _narrowed(size: CorpusSize, source: SourceConfig, folder: "IndexFolder | None") -> CorpusSize:
    from megatron_synth.blending.documents import Index, open_documents
    from megatron_synth.blending.selection import rules_of

    assert source.data is not None
    reader = IndexedReader(source.data, check=False)
    content = hash_json({"corpus": size.content_hash, **rules_of(source, reader.prefix)})
    documents = open_documents(
        Index.of(reader), reader.prefix, source, content=content, folder=folder
    )
    return replace(size, tokens=documents.tokens, documents=documents.count, content_hash=content)


def _compare(size: CorpusSize, declared: DeclaredSize, where: str) -> None:
    for what in ("tokens", "documents"):
        said, found = getattr(declared, what), getattr(size, what)
        if abs(found - said) > declared.within * said:
            raise ConfigError(
                f"{said:,} {what} were declared, the packed corpus has {found:,} "
                f"({100 * (found / said - 1) if said else 100:+.1f} %, allowed "
                f"{100 * declared.within:g} %)",
                where=f"{where}.declared",
                fix="Declare what there is, or raise declared.within, and look at the plan again.",
            )


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Advice for an unknown name: the nearest known one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(names) or 'none'}."


def require_names(
    wanted: Iterable[str], known: Iterable[str], *, where: str, what: str = "corpus"
) -> None:
    """Refuse names that are not known.

    Raises:
        ConfigError: Names the unknown ones and the nearest known name of the first.
    """
    names = set(known)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ConfigError(
            f"unknown {what}: {', '.join(map(repr, unknown))}",
            where=where,
            fix=nearest_name(unknown[0], names),
        )
