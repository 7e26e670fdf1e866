"""Memory of `megatron-synth synthesize` as the corpus grows: it should not grow with it.

    python tools/benchmarks/synthesis_scale.py CORPUS.jsonl.gz --work DIR

The whole verb, NeMo Curator on Ray and vLLM, on the first documents of a corpus: once on a tenth
of them and once on all, several generations of each. The model is a small Llama with random
weights and answers are short: what grows is the number of requests. Memory is the proportional set
size (PSS) of the driver and all of its descendants, Ray and the engine among them, sampled twice a
second. Prints one line of JSON a size.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

from whole_run import tree_pss

from megatron_synth.corpus import read_documents, write_documents
from megatron_synth.engines import read_model_folder
from megatron_synth.tokens import train_tokenizer

_TESTS = Path(__file__).resolve().parents[2] / "tests" / "engines"
_CONTEXT = 512
_SETTINGS = (
    *("max_input_tokens=64", "max_output_tokens=24", "ray.worker_restarts=0"),
    *("filters.min_tokens=1", "filters.finished=false", "min_kept_share=0"),
)


def measure(args: argparse.Namespace, documents: int) -> dict[str, Any]:
    """Run the verb on so many documents."""
    source = args.work / f"documents-{documents}.jsonl"
    write_documents(source, islice(read_documents(args.corpus), documents))
    out = args.work / f"out-{documents}"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "megatron_synth.cli", "synthesize", "rephrase_hq"]
    command += ["--documents", str(source), "--model", str(args.work / "model"), "--out", str(out)]
    command += ["--generations", str(args.generations), "--json", *_SETTINGS]
    began = time.monotonic()
    samples = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            samples.append(tree_pss(process.pid))
            time.sleep(0.5)
        assert process.stdout is not None
        answer = process.stdout.read()
    if process.returncode:
        raise SystemExit(process.returncode)
    counts = json.loads(answer)
    tenths = [samples[i * len(samples) // 10 : (i + 1) * len(samples) // 10] for i in range(10)]
    return {
        "documents": documents,
        "requests": counts["requests"],
        "written": counts["documents"],
        "output_tokens": counts["output_tokens"],
        "tokens_per_second": counts["tokens_per_second"],
        "seconds": round(time.monotonic() - began),
        "peak_mb": round(max(samples) / 1e6),
        "median_mb_by_tenth": [round(statistics.median(s) / 1e6) for s in tenths if s],
    }


def main() -> None:
    """Print one line of JSON a size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="documents, such as JSONL")
    parser.add_argument("--work", type=Path, required=True, help="folder for model and corpora")
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--generations", type=int, default=4)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    model = args.work / "model"
    if not model.is_dir():
        sys.path.insert(0, str(_TESTS))
        from tiny_llama import save_tiny_llama

        save_tiny_llama(model, vocab_size=4096, context=_CONTEXT, head_size=64)
        texts = [d.text for d in islice(read_documents(args.corpus), 2000)]
        train_tokenizer(texts, read_model_folder(model).vocab_size, args.work / "tokenizer")
        shutil.copytree(args.work / "tokenizer", model, dirs_exist_ok=True)
    for documents in (args.documents // 10, args.documents):
        print(json.dumps(measure(args, documents)), flush=True)


if __name__ == "__main__":
    main()
