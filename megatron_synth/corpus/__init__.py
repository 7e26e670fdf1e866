"""Documents: read, check, normalise, filter, count, split, compare.

In: JSONL (plain, .gz, .zst) or Parquet, as files, folders and globs; `hf://` names; or the
documentation installed on this machine. Out: `Document` streams, a clean corpus file, and its
split into validation, organic D and the oracle's pool. A row that is no document goes to
`quarantine.jsonl` with file, line and reason, and too many of them fail the step; a document that
is left out (length, duplicate, near-duplicate, benchmark query) to `dropped.jsonl` with its reason.
Cost: streaming; about 100 MB/s to read, 12 MB/s to import, over 100 MB/s a core for shingles.
"""

from megatron_synth.corpus.decontamination import DecontaminateConfig
from megatron_synth.corpus.document import BadRow, Document
from megatron_synth.corpus.files import list_files
from megatron_synth.corpus.holding_out import (
    HeldOut,
    HoldOutConfig,
    choose_held_out,
    training_texts,
)
from megatron_synth.corpus.importing import ImportConfig, import_corpus
from megatron_synth.corpus.installed import installed_documentation
from megatron_synth.corpus.near_duplicates import NearDuplicatesConfig
from megatron_synth.corpus.quarantine import Quarantine
from megatron_synth.corpus.reading import read_documents, total_bytes
from megatron_synth.corpus.shingles import (
    batch_shingles,
    repeats_shingle,
    shares_shingle,
    shingle_hashes,
)
from megatron_synth.corpus.splitting import SplitConfig, split_corpus
from megatron_synth.corpus.stats import CorpusCheck, CorpusStats, check_corpus, corpus_stats
from megatron_synth.corpus.writing import document_writer, write_documents

__all__ = [
    "BadRow",
    "CorpusCheck",
    "CorpusStats",
    "DecontaminateConfig",
    "Document",
    "HeldOut",
    "HoldOutConfig",
    "ImportConfig",
    "NearDuplicatesConfig",
    "Quarantine",
    "SplitConfig",
    "batch_shingles",
    "check_corpus",
    "choose_held_out",
    "corpus_stats",
    "document_writer",
    "import_corpus",
    "installed_documentation",
    "list_files",
    "read_documents",
    "repeats_shingle",
    "shares_shingle",
    "shingle_hashes",
    "split_corpus",
    "total_bytes",
    "training_texts",
    "write_documents",
]
