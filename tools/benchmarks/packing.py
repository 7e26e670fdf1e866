"""Packing against gigatoken alone and against Megatron-LM's preprocessing, in one run.

    python tools/benchmarks/packing.py --corpus 'data/*.jsonl.gz' --mb 350 --tokenizer TOKENIZER \
        --work /tmp/packing [--megatron-lm CHECKOUT --megatron-python PYTHON] [--repeat 3]

Documents of the corpus, drawn in a seeded order until the file has --mb megabytes (again with
other ids where the corpus is smaller), become one JSONL file. Then, --repeat times in turn:
gigatoken alone (JSONL from the page cache to ids in memory, the first call of a process), ours with
the file out of the page cache, ours with it in the page cache, and Megatron-LM's
preprocess_data_fast.py from the checkout, if one is given. Ours has the special-token check and
the provenance table on. "encode and write" is from the first text read to the last file named (the
peer: what it calls elapsed time, from the loading of the tokenizer on; gigatoken: its call);
"process" is everything from start to end. The fastest of the repeats is shown, memory from a run of
its own.
"""

import argparse
import filecmp
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from whole_run import tree_pss

from megatron_synth.corpus import read_documents

OURS = """
import json, sys
from pathlib import Path
from megatron_synth.packing import pack
from megatron_synth.tokens import Tokenizer
tokenizer = Tokenizer.load(sys.argv[2])
packed = pack(sys.argv[1], tokenizer, Path(sys.argv[3]), workers=int(sys.argv[4]))
assert packed.encoder == "gigatoken"
print(json.dumps({"seconds": packed.seconds, "tokens": packed.info.tokens}))
"""
ALONE = """
import json, sys, time
import gigatoken
tokenizer = gigatoken.Tokenizer(sys.argv[2] + "/tokenizer.json")
open(sys.argv[1], "rb").read()
began = time.monotonic()
ids = tokenizer.encode_files(gigatoken.JsonlFileSource([sys.argv[1]]))
print(json.dumps({"seconds": time.monotonic() - began, "tokens": len(ids.layout.content)}))
"""


ALONE_NAME = "gigatoken alone"
COLD, WARM = "ours, cold page cache", "ours, warm page cache"
PEER = "preprocess_data_fast.py"


def make_input(corpus: str, megabytes: float, path: Path) -> None:
    """Write the JSONL file."""
    documents = list(read_documents(corpus))
    random.Random(0).shuffle(documents)
    size = 0
    with path.open("w", encoding="utf-8") as file:
        for round_number in range(1_000_000):
            for document in documents:
                row = {"id": f"{document.id}-{round_number}", "text": document.text}
                size += file.write(json.dumps({**row, **document.metadata}, default=str) + "\n")
                if size >= megabytes * 1e6:
                    return


def run(command: list[str], **environment: str) -> tuple[float, str]:
    """Seconds of the whole process, and what it printed."""
    began = time.monotonic()
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True
    )
    return time.monotonic() - began, done.stdout


def peak_memory(command: list[str], **environment: str) -> int:
    """Largest PSS of the process and its children, sampled ten times a second, in bytes."""
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL
    )
    peak = [0]

    def sample() -> None:
        while process.poll() is None:
            peak[0] = max(peak[0], tree_pss(process.pid))
            time.sleep(0.1)

    sampler = threading.Thread(target=sample)
    sampler.start()
    if process.wait():
        raise SystemExit(process.returncode)
    sampler.join()
    return peak[0]


def out_of_page_cache(path: Path) -> None:
    """Ask the system to forget the file's pages."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def options_of() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--mb", type=float, default=350)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--ours-only", action="store_true", help="the peers hold it all in memory")
    parser.add_argument("--megatron-lm", type=Path)
    parser.add_argument("--megatron-python", default=sys.executable)
    return parser.parse_args()


def main() -> None:
    """Run all in turn, print a table."""
    options = options_of()
    options.work.mkdir(parents=True, exist_ok=True)
    source = options.work / f"input-{options.mb:g}.jsonl"
    if not source.is_file():
        make_input(options.corpus, options.mb, source)
    common = [str(source), options.tokenizer]
    ours = [sys.executable, "-c", OURS, *common, str(options.work / "ours"), str(options.workers)]
    alone = [sys.executable, "-c", ALONE, *common]
    peer = [options.megatron_python, f"{options.megatron_lm}/tools/preprocess_data_fast.py"]
    peer += ["--input", str(source), "--output-prefix", str(options.work / "peer")]
    peer += ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", options.tokenizer]
    peer += ["--use-gigatoken", "--append-eod"]
    peer_environment = {"PYTHONPATH": str(options.megatron_lm), "HF_HUB_OFFLINE": "1"}

    best: dict[str, tuple[float, float]] = {}

    def note(name: str, process: float, part: float) -> None:
        before = best.get(name, (process, part))
        best[name] = (min(before[0], process), min(before[1], part))

    for _ in range(options.repeat):
        if not options.ours_only:
            seconds, said = run(alone)
            note(ALONE_NAME, seconds, json.loads(said)["seconds"])
        out_of_page_cache(source)
        seconds, said = run(ours)
        note(COLD, seconds, json.loads(said)["seconds"])
        seconds, said = run(ours)
        note(WARM, seconds, json.loads(said)["seconds"])
        if options.megatron_lm:
            seconds, said = run(peer, **peer_environment)
            note(PEER, seconds, float(said.split()[-2]))
    memory = {WARM: peak_memory(ours)}
    if options.megatron_lm:
        memory[PEER] = peak_memory(peer, **peer_environment)
        for ending in ("bin", "idx"):
            names = [options.work / f"{n}_text_document.{ending}" for n in ("ours", "peer")]
            print(f".{ending} {'equal' if filecmp.cmp(*names, shallow=False) else 'DIFFERENT'}")
    show(best, memory, source.stat().st_size / 1e6, options.workers)


def show(
    best: dict[str, tuple[float, float]], memory: dict[str, int], size: float, workers: int
) -> None:
    """Print the table: seconds, speed in MB of JSONL a second, peak memory."""
    print(f"{size:,.0f} MB of JSONL, {workers} processes")
    print(f"{'':26}{'process':>10}{'encode and write':>26}{'peak PSS':>12}")
    for name, (process, part) in best.items():
        held = f"{memory[name] / 1e6:,.0f} MB" if name in memory else ""
        print(f"{name:26}{process:8.2f} s{part:11.2f} s{size / part:8,.0f} MB/s{held:>14}")
    if ALONE_NAME in best:
        print(f"ours / gigatoken alone: {best[ALONE_NAME][1] / best[WARM][1]:.2f} of its speed")
    if PEER in best:
        process, part = best[PEER]
        print(
            f"{PEER} / ours: process {process / best[WARM][0]:.2f} (cold "
            f"{process / best[COLD][0]:.2f}), encode and write {part / best[WARM][1]:.2f}"
        )


if __name__ == "__main__":
    main()
