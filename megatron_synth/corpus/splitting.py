"""Split a corpus by tokens: validation, organic D, and the oracle's pool that holds D.

The draw gives every training document a random key from the seed; D is the documents with the
smallest keys until it has its tokens, the pool goes on from there until it has its own. So D is a
uniform sample, and the pool is D and further documents of the same kind. Files keep the corpus's
order. Memory: 16 bytes a document and the validation texts.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import Field

from megatron_synth.config import DataError
from megatron_synth.corpus.document import Document
from megatron_synth.corpus.drawing import DrawConfig, Drawing, blocks, token_counts, training
from megatron_synth.corpus.holding_out import choose_held_out, seeded_hash
from megatron_synth.corpus.overlap import Overlap
from megatron_synth.corpus.reading import read_documents
from megatron_synth.corpus.writing import document_writer, write_documents
from megatron_synth.runs import Progress, get_logger
from megatron_synth.tokens import Tokenizer

VALIDATION = "validation.jsonl.zst"
ORGANIC = "organic.jsonl.zst"
POOL = "pool.jsonl.zst"

_log = get_logger(__name__)


class SplitConfig(DrawConfig):
    """How a corpus is split."""

    max_overlap: float = Field(default=0.2, ge=0, le=1)
    """A validation document is dropped when more than this share of its 13-token shingles stands
    in drawn training documents or in an earlier validation document."""


def split_corpus(
    config: SplitConfig,
    documents: str | Path,
    tokenizer: Tokenizer,
    out: Path,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write `validation.jsonl.zst`, `organic.jsonl.zst` and `pool.jsonl.zst` into `out`.

    Equal input, tokenizer and seed give equal bytes; a killed try leaves no partial file under a
    final name, and the next one starts over.

    Returns:
        Counts of documents and tokens by part, and of every drop.

    Raises:
        DataError: The corpus is too small for what is asked; the message has the numbers.
        RunError: The disk is full.
    """
    if config.pool_tokens < config.organic_tokens:
        raise DataError(
            f"pool_tokens ({config.pool_tokens:,}) is smaller than organic_tokens "
            f"({config.organic_tokens:,}), but the pool holds D",
            fix="Raise pool_tokens.",
        )
    progress = progress or Progress()
    out.mkdir(parents=True, exist_ok=True)
    progress.phase("holding out validation")
    held_out = choose_held_out(config, documents)
    candidates = [d for d in read_documents(documents) if held_out.holds(d)]
    lengths = token_counts(tokenizer, candidates)
    short = [d for d, n in zip(candidates, lengths, strict=True) if n <= config.max_document_tokens]
    draw = Drawing(config, Path(documents), tokenizer, held_out, progress).draw()

    overlap = Overlap([d.text for d in short])
    progress.phase("writing D and the pool", float(draw.pooled.sum()), "documents")
    with ExitStack() as stack:
        organic = stack.enter_context(document_writer(out / ORGANIC))
        pool = stack.enter_context(document_writer(out / POOL))
        for block in blocks(training(documents, held_out)):
            drawn = [(i, d) for i, d in block if draw.pooled[i]]
            for i, document in drawn:
                pool.write(document)
                if draw.organic[i]:
                    organic.write(document)
            overlap.observe([d.text for _, d in drawn])
            progress.update(pool.count)
    leaked = overlap.shares() > config.max_overlap
    repeated = overlap.repeats_earlier(config.max_overlap) & ~leaked
    clean = [d for d, out_ in zip(short, leaked | repeated, strict=True) if not out_]
    validation = _sample(clean, config)
    if not validation:
        raise DataError(
            f"no validation document is left of {len(candidates):,} held out: "
            f"{len(candidates) - len(short):,} over {config.max_document_tokens:,} tokens, "
            f"{len(short) - len(clean):,} near-duplicates",
            where=str(documents),
            fix="Use a larger corpus, or raise max_document_tokens or max_overlap.",
        )
    write_documents(out / VALIDATION, validation)
    counts = {
        "held_out_documents": len(candidates),
        "held_out_groups": len(held_out.groups),
        "validation_too_long": len(candidates) - len(short),
        "validation_in_training": int(leaked.sum()),
        "validation_repeated": int(repeated.sum()),
        "validation_spare": len(clean) - len(validation),
        "validation_documents": len(validation),
        "validation_tokens": sum(n + 1 for n in token_counts(tokenizer, validation)),
        "training_documents": len(draw.pooled),
        "drawn_too_long": draw.too_long,
        "organic_documents": organic.count,
        "organic_tokens": draw.organic_tokens,
        "pool_documents": pool.count,
        "pool_tokens": draw.pool_tokens,
    }
    _log.info("split %s: %s", documents, counts)
    return counts


def _sample(documents: list[Document], config: SplitConfig) -> list[Document]:
    """At most `validation_documents` of them, drawn by the seed, in their order."""
    ranked = sorted(
        range(len(documents)),
        key=lambda i: (seeded_hash(config.seed, "validation", documents[i].id), i),
    )
    return [documents[i] for i in sorted(ranked[: config.validation_documents])]
