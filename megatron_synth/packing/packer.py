"""Pack a corpus: cut it into parts, encode them side by side, join them, name the files last."""

import shutil
from contextlib import nullcontext
from pathlib import Path

from megatron_synth.config import ConfigError, DataError
from megatron_synth.packing.assembly import Packed, Packing
from megatron_synth.packing.choosing import ENCODERS, choose_encoder
from megatron_synth.packing.config import PackConfig
from megatron_synth.runs import Progress
from megatron_synth.runs.atomic import disk_errors
from megatron_synth.runs.locks import exclusive
from megatron_synth.tokens import Tokenizer

PART_BYTES = 32 << 20
"""Of input files: small enough to spread the work, large enough to cost nothing."""


def pack(
    documents: str | Path,
    tokenizer: Tokenizer,
    prefix: Path,
    progress: Progress | None = None,
    config: PackConfig | None = None,
    *,
    workers: int = 1,
    encoder: str = "auto",
    part_bytes: int = PART_BYTES,
) -> Packed:
    """Write `PREFIX_text_document.bin`, `.idx`, `.provenance.parquet` and, last, `.json`.

    Document i of the index is document i of the input: its ids, then EOS, as one sequence, as
    Megatron-LM's `preprocess_data.py --append-eod` writes it. Rows that are no documents are
    listed in `PREFIX.quarantine.jsonl`. A killed try leaves nothing under a final name that is
    not whole; the next one goes on with the parts that are done, and gives the same files.

    Args:
        documents: File, folder or glob of documents, as `read_documents` takes it.
        tokenizer: Encodes them.
        prefix: Folder and first part of the files' names; the folder is made.
        progress: Gets the MB read, of all MB on disk.
        config: What the product holds.
        workers: Processes. The product does not depend on it.
        encoder: `auto` is gigatoken where it is proven to give the same ids, else the tokenizer;
            `gigatoken` and `tokenizer` ask for one of them.
        part_bytes: Size of the parts, of which each is packed and kept as a whole.

    Raises:
        ConfigError: The prefix has no name, or `encoder` is none of the three.
        DataError: No documents, too many bad rows, a damaged Parquet file, or BOS asked of a
            tokenizer that has none.
        RunError: The disk is full, a process died, or another one works on the same prefix.
    """
    config = config or PackConfig()
    progress = progress or Progress()
    if config.beginning_of_text and tokenizer.bos_id is None:
        raise DataError(
            "beginning_of_text is on, but this tokenizer has no BOS token",
            where=tokenizer.folder,
            fix="Turn it off, or use a tokenizer with bos_token.",
        )
    if encoder not in ENCODERS:
        raise ConfigError(f"encoder is {encoder!r}", fix=f"Choose one of {', '.join(ENCODERS)}.")
    if str(documents).startswith("hf://"):
        raise DataError(
            "a dataset on a hub cannot be packed as it is",
            where=str(documents),
            fix="Import it first: megatron-synth corpus import hf://OWNER/NAME --out FOLDER.",
        )
    if config.output_mb is not None:
        part_bytes = min(part_bytes, config.output_mb * 1_000_000)
    prefix = _bare(prefix)
    with disk_errors(prefix.parent):
        prefix.parent.mkdir(parents=True, exist_ok=True)
    work = prefix.with_name(f".{prefix.name}.pack")
    lock = prefix.with_name(f".{prefix.name}.lock")
    with exclusive(lock, str(prefix), remove=True):
        packing = Packing(documents, tokenizer, prefix, config, work, part_bytes)
        with packing.start(workers) or nullcontext() as pool:
            fast = choose_encoder(tokenizer, packing.parts, config, encoder)
            packed = packing.run(progress, pool, fast)
        shutil.rmtree(work)
    return packed


def _bare(prefix: Path) -> Path:
    """The prefix without the key that is added to it."""
    name = prefix.name.removesuffix("_text_document")
    if not name:
        raise ConfigError(
            "the prefix has no name", where=str(prefix), fix="Give FOLDER/NAME, such as packed/web."
        )
    return prefix.with_name(name)
