"""Split an indexed dataset at document borders; streaming."""

import dataclasses
from bisect import bisect_left, bisect_right
from itertools import pairwise
from pathlib import Path

import numpy as np

from megatron_synth.config import ConfigError, DataError
from megatron_synth.packing.beside import SideTable, info_of, is_count
from megatron_synth.packing.counting import TextCounts, count_texts
from megatron_synth.packing.info import CorpusInfo
from megatron_synth.packing.layout import dataset_stem
from megatron_synth.packing.product import Made, Product, products, refuse_own_input, size_of
from megatron_synth.packing.reader import IndexedReader
from megatron_synth.runs import Progress, get_logger
from megatron_synth.tokens import Tokenizer

_log = get_logger(__name__)


def split(
    prefix: str | Path,
    out: str | Path,
    *,
    parts: int | None = None,
    tokens: int | None = None,
    tokenizer: Tokenizer | None = None,
    progress: Progress | None = None,
) -> list[Made]:
    """Cut a dataset at document borders: `OUT-00000-of-00004_text_document.*`, and so on.

    All parts are named at the end, when all are whole. Each gets its rows of the side table. Each
    gets a `.json` if everything in it can be known: a part's text bytes and special spellings are
    not in the ids, so they are counted in the text that `tokenizer` decodes, and taken if they add
    up to the whole's. Without a `tokenizer`, or where they do not (a tokenizer that changes text),
    no part gets a `.json`, and the log says so.

    Args:
        prefix: The dataset.
        out: Folder and first part of the names; it may end in `_KEY_document`.
        parts: So many, of equal tokens as nearly as whole documents allow, none without documents.
        tokens: Or at most so many tokens in each.
        tokenizer: What packed the dataset.
        progress: Gets the MB of the `.bin`.

    Raises:
        ConfigError: Not exactly one of `parts` and `tokens`, or one under 1.
        DataError: The dataset is missing or damaged, has fewer documents than `parts`, or one of
            more than `tokens` tokens.
        RunError: No room, or another process makes the same files.
    """
    if (parts is None) == (tokens is None):
        raise ConfigError("give either parts or tokens", fix="One of them says where to cut.")
    if min(parts or 1, tokens or 1) < 1 or 0 in (parts, tokens):
        raise ConfigError("parts and tokens must be at least 1", where="split")
    reader = IndexedReader(prefix)
    cuts = _equal(reader, parts) if parts is not None else _at_most(reader, tokens or 1)
    spans = list(pairwise(cuts))
    stems = [dataset_stem(out, f"-{i:05d}-of-{len(spans):05d}") for i in range(len(spans))]
    refuse_own_input([reader], stems)
    whole = info_of(reader)
    counts = _text_counts(reader, whole, spans, tokenizer)
    table = None
    if reader.paths.provenance.is_file():
        table = SideTable(reader.paths.provenance, reader.documents)
    progress = progress or Progress()
    progress.phase("splitting", total=reader.tokens * reader.dtype.itemsize / 1e6)
    with products(stems, dataset_stem(out), size_of(reader)) as made:
        for product, (first, last) in zip(made, spans, strict=True):
            product.write(reader.blocks(first, last), reader.dtype, progress)
            if table is not None:
                product.write_table(table.schema, table.take(last - first))
        infos: list[CorpusInfo | None] = [None] * len(made)
        if whole is not None and counts is not None:
            infos = [
                _part_info(whole, product, reader, span, count)
                for product, span, count in zip(made, spans, counts, strict=True)
            ]
        return [product.publish(info) for product, info in zip(made, infos, strict=True)]


def _equal(reader: IndexedReader, parts: int) -> list[int]:
    """Borders, in documents, of `parts` parts."""
    if reader.documents < parts:
        raise DataError(
            f"{reader.documents:,} documents cannot be cut into {parts:,} parts",
            where=reader.prefix,
            fix="Ask for fewer parts.",
        )
    cuts = [0]
    for number in range(1, parts):
        wanted = reader.tokens * number // parts
        cut = bisect_left(range(reader.documents), wanted, key=reader.tokens_before)
        if cut and wanted - reader.tokens_before(cut - 1) < reader.tokens_before(cut) - wanted:
            cut -= 1
        cuts.append(min(max(cut, cuts[-1] + 1), reader.documents - (parts - number)))
    return [*cuts, reader.documents]


def _at_most(reader: IndexedReader, tokens: int) -> list[int]:
    """Borders, in documents, of parts that hold as many documents as `tokens` allows."""
    if not reader.documents:
        raise DataError("no documents to split", where=reader.prefix, fix="It is empty.")
    cuts = [0]
    while cuts[-1] < reader.documents:
        limit = reader.tokens_before(cuts[-1]) + tokens
        cut = bisect_right(range(reader.documents + 1), limit, key=reader.tokens_before) - 1
        if cut == cuts[-1]:
            begin, end = reader.span(cut)
            raise DataError(
                f"document {cut:,} alone has {end - begin:,} tokens, more than {tokens:,}",
                where=reader.prefix,
                fix="Allow more tokens a part; documents are not cut.",
            )
        cuts.append(cut)
    return cuts


def _text_counts(
    reader: IndexedReader,
    whole: CorpusInfo | None,
    spans: list[tuple[int, int]],
    tokenizer: Tokenizer | None,
) -> list[TextCounts] | None:
    """What the `.json` of each part says of its texts; None where that cannot be known."""
    if whole is None:
        return None
    if len(spans) == 1:
        return [TextCounts(whole.text_bytes, whole.special_spellings)]
    if (whole.text_bytes, whole.special_spellings) == (0, 0):
        return [TextCounts(0, 0) for _ in spans]
    if tokenizer is None:
        _log.warning("the parts get no .json: without the tokenizer their texts are unknown")
        return None
    if tokenizer.fingerprint != whole.tokenizer:
        raise DataError(
            "packed with another tokenizer than this",
            where=reader.prefix,
            fix=f"Give the one that packed it (fingerprint {whole.tokenizer}).",
        )
    counts = [count_texts(reader, span, tokenizer, whole) for span in spans]
    totals = (sum(c.text_bytes for c in counts), sum(c.special_spellings for c in counts))
    if totals != (whole.text_bytes, whole.special_spellings):
        _log.warning("the parts get no .json: decoded, the texts are not what was packed")
        return None
    return counts


def _part_info(
    whole: CorpusInfo,
    product: Product,
    reader: IndexedReader,
    span: tuple[int, int],
    texts: TextCounts,
) -> CorpusInfo | None:
    """The info of a part; None if `CorpusInfo` has a count that is not known of a part."""
    empty = np.count_nonzero(np.diff(reader.borders[span[0] : span[1] + 1]) == 0)
    known = {
        "documents": product.documents,
        "tokens": product.tokens,
        "empty_documents": int(empty),
        "longest": product.longest,
        "content_hash": product.content_hash,
        **dataclasses.asdict(texts),
    }
    for field in dataclasses.fields(whole):
        value = getattr(whole, field.name)
        if is_count(field.name, value) and field.name not in known and value != 0:
            _log.warning("the parts get no .json: %s of a part is unknown", field.name)
            return None
    return dataclasses.replace(whole, **known)
