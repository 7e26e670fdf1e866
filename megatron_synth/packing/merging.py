"""Merge indexed datasets into one; streaming."""

from collections.abc import Sequence
from pathlib import Path

from megatron_synth.config import ConfigError, DataError
from megatron_synth.packing.beside import SideTable, info_of, merged_info
from megatron_synth.packing.info import CorpusInfo
from megatron_synth.packing.layout import dataset_stem
from megatron_synth.packing.product import Made, products, refuse_own_input, size_of
from megatron_synth.packing.reader import IndexedReader
from megatron_synth.runs import Progress, get_logger

_log = get_logger(__name__)


def merge(
    prefixes: Sequence[str | Path], out: str | Path, progress: Progress | None = None
) -> Made:
    """Write the documents of all datasets, in the order given, as one dataset.

    `.bin` and `.idx` are those of Megatron-LM's `tools/merge_datasets.py` (with `--multimodal`
    for datasets with modes). The side tables are joined if every dataset has one, and so are the
    `.json` files; what cannot be made is said in the log. An older dataset under the same name
    is replaced, in the end.

    Args:
        prefixes: At least one, with or without `_text_document`; one may come more than once.
        out: `OUT_text_document.*` is written; `OUT` may end in `_KEY_document`.
        progress: Gets the MB of the `.bin`.

    Raises:
        DataError: A dataset is missing or damaged, or dtypes, modes, tokenizers or the side
            tables' columns differ.
        ConfigError: No dataset is given, or `out` is one of them.
        RunError: No room, or another process makes the same files.
    """
    if not prefixes:
        raise ConfigError("no datasets to merge", fix="Give at least one prefix.")
    readers = [IndexedReader(prefix) for prefix in prefixes]
    stem = dataset_stem(out)
    refuse_own_input(readers, [stem])
    first = readers[0]
    for reader in readers[1:]:
        if reader.dtype != first.dtype:
            raise DataError(
                f"its ids are {reader.dtype.name}, those of {first.prefix} {first.dtype.name}",
                where=reader.prefix,
                fix="Pack both with the same tokenizer; ids are not converted.",
            )
        if (reader.modes is None) != (first.modes is None):
            raise DataError(
                f"only one of this and {first.prefix} has modes (multimodal)",
                where=reader.prefix,
                fix="Merge text datasets and multimodal ones apart.",
            )
    infos = _all_infos(readers)
    tables = _all_tables(readers)
    progress = progress or Progress()
    progress.phase("merging", total=sum(r.tokens * r.dtype.itemsize for r in readers) / 1e6)
    with products([stem], stem, sum(map(size_of, readers))) as (product,):
        product.write((b for r in readers for b in r.blocks()), first.dtype, progress)
        if tables:
            batches = (
                batch
                for reader, table in zip(readers, tables, strict=True)
                for batch in table.take(reader.documents)
            )
            product.write_table(tables[0].schema, batches)
        info = merged_info(infos, product.content_hash) if infos else None
        return product.publish(info)


def _all_infos(readers: list[IndexedReader]) -> list[tuple[Path, CorpusInfo]]:
    """All infos, known to fit each other; none if one is missing."""
    found = [(r.prefix, info) for r in readers if (info := info_of(r)) is not None]
    if found:
        merged_info(found, "")  # refuses what does not fit, before the work begins
    if len(found) == len(readers):
        return found
    missing = [r.prefix.name for r in readers if not r.paths.info.is_file()]
    _log.warning("no .json is written: %d of %s", *_some(missing, readers, "no .json"))
    return []


def _all_tables(readers: list[IndexedReader]) -> list[SideTable]:
    """All side tables, of the same columns; none if one is missing."""
    there = [r for r in readers if r.paths.provenance.is_file()]
    if len(there) < len(readers):
        missing = [r.prefix.name for r in readers if r not in there]
        if there:
            _log.warning("no side table is written: %d of %s", *_some(missing, readers, "none"))
        return []
    tables = [SideTable(r.paths.provenance, r.documents) for r in readers]
    for reader, table in zip(readers, tables, strict=True):
        if not table.schema.equals(tables[0].schema):
            raise DataError(
                f"has columns {table.schema.names}, but {readers[0].paths.provenance.name} "
                f"{tables[0].schema.names}, or of other types",
                where=reader.paths.provenance,
                fix="Pack both with the same release, or move the side tables away.",
            )
    return tables


def _some(missing: list[str], readers: list[IndexedReader], what: str) -> tuple[int, str]:
    return len(missing), f"{len(readers)} datasets have {what}, the first is {missing[0]}"
