"""What a packed corpus is: its files and its counts."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from megatron_synth.config import DataError
from megatron_synth.packing.layout import with_key
from megatron_synth.runs.atomic import clear_leftovers


@dataclass(frozen=True)
class CorpusInfo:
    """`PREFIX_text_document.json`, written last: a corpus that has one is whole.

    Attributes:
        documents: Number of documents.
        tokens: Number of ids, EOS (and BOS) included.
        text_bytes: UTF-8 bytes of all texts.
        dtype: `uint16` or `int32`.
        longest: Ids of the longest sequence.
        special_spellings: How often a text spelled a special token.
        vocab_size: Of the tokenizer.
        eos_id: Last id of every document.
        bos_id: First id of every document, where one was asked for.
        tokenizer: Fingerprint of the tokenizer.
        content_hash: Hash of the `.bin` and `.idx` files.
        empty_documents: Documents of which the tokenizer makes no ids; they have no sequence.
    """

    documents: int
    tokens: int
    text_bytes: int
    dtype: str
    longest: int
    special_spellings: int
    vocab_size: int
    eos_id: int
    bos_id: int | None
    tokenizer: str
    content_hash: str
    empty_documents: int = 0


@dataclass(frozen=True)
class CorpusPaths:
    """Files of a packed corpus.

    Attributes:
        stem: `PREFIX_text_document`: what Megatron calls the path prefix of a dataset.
    """

    stem: Path

    @property
    def bin(self) -> Path:
        """The token ids."""
        return self._with(".bin")

    @property
    def idx(self) -> Path:
        """Megatron's index."""
        return self._with(".idx")

    @property
    def info(self) -> Path:
        """The `CorpusInfo`."""
        return self._with(".json")

    @property
    def provenance(self) -> Path:
        """The side table."""
        return self._with(".provenance.parquet")

    @property
    def temporary(self) -> "CorpusPaths":
        """Names for the time of making: fixed, so that what a kill leaves is overwritten."""
        return CorpusPaths(self.stem.with_name(f".{self.stem.name}.tmp"))

    def name_from(self, temporary: "CorpusPaths", *, provenance: bool) -> None:
        """Give finished files these names, all but the info, which is to be written last.

        An old index never stands beside new ids: what tells that a corpus is whole goes first.
        """
        for old in (self.info, self.idx, self.provenance):
            old.unlink(missing_ok=True)
        clear_leftovers(self.info)
        temporary.bin.replace(self.bin)
        if provenance:
            temporary.provenance.replace(self.provenance)
        temporary.idx.replace(self.idx)

    def _with(self, suffix: str) -> Path:
        return self.stem.with_name(self.stem.name + suffix)


def paths_of(prefix: str | Path) -> CorpusPaths:
    """Files of the corpus `prefix`; `PREFIX_text_document` is taken as well."""
    return CorpusPaths(with_key(prefix))


def read_corpus_info(prefix: str | Path) -> CorpusInfo:
    """Read the `CorpusInfo` of a packed corpus.

    Raises:
        DataError: There is none, or it is damaged.
    """
    path = paths_of(prefix).info
    info = load_info(path)
    if info is None:
        raise DataError("no such packed corpus", where=path, fix="Pack the documents first.")
    return info


def load_info(path: Path) -> CorpusInfo | None:
    """Read the `.json` beside a dataset; None where there is none.

    Raises:
        DataError: It is damaged.
    """
    try:
        return CorpusInfo(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise DataError(f"damaged: {error}", where=path, fix="Pack the corpus again.") from error


def info_to_json(info: CorpusInfo) -> dict[str, object]:
    """The info as a JSON object."""
    return dataclasses.asdict(info)
