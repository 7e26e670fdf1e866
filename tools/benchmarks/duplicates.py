"""Time and memory of duplicate@N on real text.

    python tools/benchmarks/duplicates.py CORPUS.jsonl.gz [CORPUS ...] --work DIR

Writes a corpus of that many documents first: each is four passages of 60 words, drawn from all
corpora, so that two of them share a quarter at most; a known share of them is an earlier one with
two words changed (similarity of about 0.9). Then counts near-duplicates among them in a process of
its own: reading the file from disk, shingles, signatures and comparison, peak memory of it all.
The corpus is kept in DIR; the same settings find it there again.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

from megatron_synth.config import parse_count
from megatron_synth.corpus import Document, read_documents, write_documents
from megatron_synth.corpus.blocks import document_blocks
from megatron_synth.corpus.duplicate_share import DuplicateSample

_WORDS, _PASSAGES = 60, 4
_PLANTED = 0.01


def main() -> None:
    """Make the corpus, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", nargs="*")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--documents", default="1000000")
    parser.add_argument("--count", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.count:
        print(json.dumps(_count(arguments.count)))
        return
    documents = int(str(parse_count(arguments.documents)))
    path = arguments.work / f"{documents}.jsonl"
    if not path.is_file():
        arguments.work.mkdir(parents=True, exist_ok=True)
        _make(arguments.corpora, documents, path)
    command = [sys.executable, __file__, "--work", str(arguments.work), "--count", str(path)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    print(f"{documents:,} documents, {path.stat().st_size / 1e9:.2f} GB")
    for name, value in found.items():
        print(f"  {name}: {value}")


def _make(corpora: list[str], documents: int, path: Path) -> None:
    words = [w for corpus in corpora for d in read_documents(corpus) for w in d.text.split()]
    passages = [" ".join(words[i : i + _WORDS]) for i in range(0, len(words) - _WORDS, _WORDS)]
    choose = random.Random(0)
    earlier: list[str] = []

    def made(number: int) -> Document:
        if earlier and choose.random() < _PLANTED:
            copy = earlier[choose.randrange(len(earlier))].split()
            for place in choose.sample(range(len(copy)), 2):
                copy[place] = "changed"
            return Document(f"copy{number}", " ".join(copy))
        text = "\n".join(choose.sample(passages, _PASSAGES))
        if number % 10 == 0:  # copies are of every tenth: they need not all stay in memory
            earlier.append(text)
        return Document(f"p{number}", text)

    write_documents(path, (made(number) for number in range(documents)))


def _count(path: Path) -> dict[str, float | int]:
    began = time.perf_counter()
    sample = DuplicateSample(1 << 30)
    planted = 0
    for block in document_blocks(read_documents(path)):
        planted += sum(document.id.startswith("copy") for document in block)
        sample.add([document.text for document in block])
    read = time.perf_counter() - began
    found = sample.count()
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "of them reading and signatures": round(read, 1),
        "peak memory, GB": round(_peak_kilobytes() / 1e6, 2),
        "documents": found.documents,
        "planted changed copies": planted,
        "with a near-duplicate": found.with_duplicate,
        "repeat an earlier one": found.repeats,
    }


def _peak_kilobytes() -> int:
    """Of this program alone: `getrusage` also knows what the parent held when it forked."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    main()
