"""How fast the filters of synthesis are on one core.

    python tools/benchmarks/synthesis_filters.py CORPUS.jsonl.gz [CORPUS ...]

Each document is judged as if it had been made from the next one. MB are those of the documents
alone, though the copy filter reads their sources too. The best of several rounds is shown: the
first one compiles, and other work on the machine can only slow it down.
"""

import argparse
import time
from collections.abc import Callable

from megatron_synth.corpus import Document, read_documents, repeats_shingle
from megatron_synth.synthesis import FilterConfig, drop_reason
from megatron_synth.synthesis.filters import FilterContext, copied_share
from megatron_synth.synthesis.prompts import read_prompt

_CONTEXT = FilterContext(prompts=(read_prompt("rephrase_hq").body,))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", nargs="+")
    parser.add_argument("--megabytes", type=float, default=10.0, help="of each corpus, about")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    config = FilterConfig(min_tokens=0)
    filters: dict[str, Callable[[Document, str], object]] = {
        "repeated shingles": lambda document, _: repeats_shingle(document.text),
        "copies (text and source)": lambda document, source: copied_share(document.text, source),
        "all that are on by default": lambda document, source: drop_reason(
            config, document, source, _CONTEXT
        ),
    }
    for corpus in arguments.corpora:
        documents = _read(corpus, arguments.megabytes * 1e6)
        sources = [document.text for document in [*documents[1:], documents[0]]]
        size = sum(len(document.text.encode()) for document in documents) / 1e6
        print(f"{corpus}: {len(documents):,} documents, {size:.1f} MB")
        for name, judge in filters.items():
            best = min(_seconds(judge, documents, sources) for _ in range(arguments.rounds))
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


def _seconds(
    judge: Callable[[Document, str], object], documents: list[Document], sources: list[str]
) -> float:
    started = time.process_time()
    for document, source in zip(documents, sources, strict=True):
        judge(document, source)
    return time.process_time() - started


if __name__ == "__main__":
    main()
