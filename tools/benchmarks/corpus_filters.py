"""Near-duplicates and decontamination beside what people use today, on the same text.

Each figure is the best of three runs, each in a process of its own. Peers:

- near-duplicates: datasketch's MinHash and MinHashLSH, given our shingle hashes (so that the time
  to make them is in both), the same threshold, permutations and bands, and the same check of each
  candidate against the threshold;
- decontamination: lm-evaluation-harness's Janitor (in Python, as its package installs it), and the
  least that Python can do: a set of tuples of 13 words. Both: lower case, no punctuation, split at
  white space.
"""

import argparse
import gzip
import json
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from megatron_synth.corpus import batch_shingles, list_files, read_documents
from megatron_synth.corpus.decontamination import Benchmarks, DecontaminateConfig
from megatron_synth.corpus.near_duplicates import (
    NearDuplicates,
    NearDuplicatesConfig,
    bands_for,
)

_CONFIG = NearDuplicatesConfig()
_BLOCK = 256
_MADE = 20_000
_RUNS = 3


def near_rensa(texts: list[str]) -> int:
    """Ours."""
    near, dropped = NearDuplicates(_CONFIG), 0
    for start in range(0, len(texts), _BLOCK):
        for signature in near.signatures(texts[start : start + _BLOCK]):
            if near.find(signature) is None:
                near.add("", signature)
            else:
                dropped += 1
    KEPT.append(near)
    return dropped


def near_datasketch(texts: list[str]) -> int:
    """The peer."""
    from datasketch import MinHash, MinHashLSH

    bands = bands_for(_CONFIG.threshold, _CONFIG.permutations)
    index = MinHashLSH(num_perm=_CONFIG.permutations, params=(bands, _CONFIG.permutations // bands))
    kept: list[Any] = []
    for start in range(0, len(texts), _BLOCK):
        sets = batch_shingles(texts[start : start + _BLOCK], _CONFIG.shingle_words)
        for place in range(len(sets)):
            signature = MinHash(_CONFIG.permutations, seed=1, hashfunc=int)
            if len(sets[place]):
                signature.update_batch((sets[place] & 0xFFFFFFFF).tolist())
            found = (signature.jaccard(kept[k]) for k in index.query(signature))
            if not any(similarity >= _CONFIG.threshold for similarity in found):
                index.insert(len(kept), signature)
                kept.append(signature)
    KEPT.append((index, kept))
    return len(texts) - len(kept)


KEPT: list[Any] = []
"""Holds what was built until memory has been read."""


def contaminated_ours(texts: list[str], queries: str) -> tuple[float, int]:
    """Ours: seconds for the documents alone, and hits."""
    benchmarks = Benchmarks(DecontaminateConfig(queries=(queries,)))
    KEPT.append(benchmarks)
    began = time.perf_counter()
    found = 0
    for start in range(0, len(texts), _BLOCK):
        found += sum(hit is not None for hit in benchmarks.hits(texts[start : start + _BLOCK]))
    return time.perf_counter() - began, found


def contaminated_janitor(texts: list[str], queries: str) -> tuple[float, int]:
    """The peer: seconds for the documents alone, and hits."""
    from lm_eval.decontamination.janitor import Janitor

    janitor = Janitor(ngram_n=13, minimum_slice_length=0)
    for query in _query_texts(queries):
        janitor.register_contaminant_python(query)
    KEPT.append(janitor)
    began = time.perf_counter()
    found = sum(janitor.clean_python(text) != [text] for text in texts)
    return time.perf_counter() - began, found


def contaminated_set(texts: list[str], queries: str) -> tuple[float, int]:
    """The other peer."""
    known: set[tuple[str, ...]] = set()
    for query in _query_texts(queries):
        known.update(_word_grams(query))
    KEPT.append(known)
    began = time.perf_counter()
    found = sum(any(gram in known for gram in _word_grams(text)) for text in texts)
    return time.perf_counter() - began, found


def _query_texts(queries: str) -> Iterator[str]:
    for path in list_files(queries):
        with gzip.open(path, "rt", encoding="utf-8") as handle:
            for line in handle:
                row = json.loads(line)
                for key in DecontaminateConfig.model_fields["keys"].default:
                    value = row.get(key)
                    for text in value if isinstance(value, list) else [value]:
                        if isinstance(text, str):
                            yield text


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _word_grams(text: str) -> "zip[tuple[str, ...]]":
    words = text.lower().translate(_NO_PUNCTUATION).split()
    return zip(*(words[k:] for k in range(13)), strict=False)


def measure(name: str, documents: str, queries: str) -> dict[str, float]:
    """One measurement, in this process."""
    if name.startswith("memory_"):
        # Distinct texts of 40 words; what grows is the index.
        texts = [" ".join(f"w{k}x{_letters(n)}" for k in range(40)) for n in range(_MADE)]
    else:
        texts = [document.text for document in read_documents(documents)]
    near = {"rensa": near_rensa, "datasketch": near_datasketch}
    kind, _, which = name.partition("_")
    process = psutil.Process()
    if kind in ("memory", "near"):
        near[which](texts[:_BLOCK])  # imports and tables
        KEPT.clear()
        before, began = process.memory_info().rss, time.perf_counter()
        found = near[which](texts)
        seconds = time.perf_counter() - began
    else:
        before = process.memory_info().rss
        hits = {
            "ours": contaminated_ours,
            "janitor": contaminated_janitor,
            "set": contaminated_set,
        }
        seconds, found = hits[which](texts, queries)
    grown = process.memory_info().rss - before
    size = sum(len(text.encode()) for text in texts)
    return {
        "seconds": seconds,
        "found": found,
        "mb_s": size / 1e6 / seconds,
        "bytes_each": grown / len(texts),
        "grown_mb": grown / 1e6,
    }


def _letters(number: int) -> str:
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


def best(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """The fastest of three runs in processes of their own."""
    command = [sys.executable, __file__, arguments.documents, arguments.queries, "--only", name]
    runs = [
        json.loads(_output(command).splitlines()[-1])  # a peer may say something before
        for _ in range(1 if name.startswith("memory") else _RUNS)
    ]
    return min(runs, key=lambda run: run["seconds"])


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("documents", help="a corpus file, such as web.jsonl.gz")
    parser.add_argument("queries", help="benchmark items: a folder of .jsonl.gz")
    parser.add_argument("--only", help="print one measurement as JSON")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.documents, arguments.queries)))
        return
    print(f"{Path(arguments.documents).name}; best of {_RUNS}")
    rows = (
        ("near-duplicates, MB/s", "near_rensa", "near_datasketch", "mb_s"),
        ("  documents dropped", "near_rensa", "near_datasketch", "found"),
        ("  index, bytes a document", "memory_rensa", "memory_datasketch", "bytes_each"),
        ("decontamination, Janitor: MB/s", "hits_ours", "hits_janitor", "mb_s"),
        ("  documents hit", "hits_ours", "hits_janitor", "found"),
        ("  memory of the queries, MB", "hits_ours", "hits_janitor", "grown_mb"),
        ("decontamination, set: MB/s", "hits_ours", "hits_set", "mb_s"),
        ("  documents hit", "hits_ours", "hits_set", "found"),
        ("  memory of the queries, MB", "hits_ours", "hits_set", "grown_mb"),
    )
    names = dict.fromkeys(name for row in rows for name in row[1:3])
    found = {name: best(name, arguments) for name in names}
    print(f"{'':32}{'ours':>12}{'peer':>12}{'ratio':>8}")
    for title, ours, peer, figure in rows:
        left, right = found[ours][figure], found[peer][figure]
        print(f"{title:32}{left:12,.1f}{right:12,.1f}{left / right:8.2f}")


if __name__ == "__main__":
    main()
