"""How fast the filters of synthesis are on one core.

    python tools/benchmarks/synthesis_filters.py CORPUS.jsonl.gz [CORPUS ...]

Each document is judged as if it had been made from the next one, in batches as `FilterStage` gets
them. MB are those of the documents alone, though the copy filter reads their sources too. The best
of several rounds is shown: the first one compiles, and other work on the machine can only slow it
down.
"""

import argparse
import time

from megatron_synth.corpus import Document, read_documents
from megatron_synth.synthesis import FilterConfig
from megatron_synth.synthesis.filters import FilterContext, drop_reasons
from megatron_synth.synthesis.prompts import read_prompt

_BATCH = 500
"""Documents; a part of a shard has up to 2,000."""
_CONTEXT = FilterContext(prompts=(read_prompt("rephrase_hq").body,))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", nargs="+")
    parser.add_argument("--megabytes", type=float, default=10.0, help="of each corpus, about")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    off = {
        **{name: False for name in ("finished", "refusals", "special_spellings", "language")},
        **{"min_tokens": 0, "prompt_phrase_words": None, "max_times_target": None},
    }
    configs = {
        "repeated shingles": FilterConfig(**off, max_copied_share=1),
        "copies (text and source)": FilterConfig(**off, repeated_shingle=False),
        "all that are on by default": FilterConfig(min_tokens=0),
    }
    for corpus in arguments.corpora:
        documents = _read(corpus, arguments.megabytes * 1e6)
        sources = [document.text for document in [*documents[1:], documents[0]]]
        size = sum(len(document.text.encode()) for document in documents) / 1e6
        print(f"{corpus}: {len(documents):,} documents, {size:.1f} MB")
        for name, config in configs.items():
            best = min(_seconds(config, documents, sources) for _ in range(arguments.rounds))
            print(f"  {name}: {size / best:.0f} MB/s")


def _read(corpus: str, size: float) -> list[Document]:
    documents: list[Document] = []
    for document in read_documents(corpus):
        if size <= 0:
            break
        size -= len(document.text.encode())
        documents.append(
            Document(document.id, document.text, finish_reason="stop", token_counts={"text": 1})
        )
    return documents


def _seconds(config: FilterConfig, documents: list[Document], sources: list[str]) -> float:
    started = time.process_time()
    for first in range(0, len(documents), _BATCH):
        last = first + _BATCH
        drop_reasons(config, documents[first:last], sources[first:last], _CONTEXT)
    return time.process_time() - started


if __name__ == "__main__":
    main()
