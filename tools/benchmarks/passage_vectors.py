"""Passages of corpora as vectors, for the benchmark of neighbours.

    python tools/benchmarks/passage_vectors.py --encoder FOLDER --out VECTORS.npy CORPUS ...

FOLDER is a Hugging Face encoder that pools by the mean, such as all-MiniLM-L6-v2. Documents are cut
into passages of equal length; a seed draws as many as asked for. Vectors are float16 with unit
norm. With `--static` each token of the vocabulary is encoded by itself once, and a passage is the
mean of its tokens' vectors, each weighted by a / (a + its share of all tokens) (Arora et al. 2017),
less their mean: a thousand times faster, and still the geometry of real text.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from megatron_synth.corpus import read_documents

_SMOOTHING = 1e-3


def main() -> None:
    """Encode and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", nargs="+", type=Path)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--passages", type=int, default=60_000)
    parser.add_argument("--words", type=int, default=40, help="of a passage")
    parser.add_argument("--static", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    texts = _passages(arguments.corpora, arguments.words, arguments.passages)
    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(arguments.encoder, local_files_only=True)
    model = AutoModel.from_pretrained(arguments.encoder, local_files_only=True).eval()
    encode = _static if arguments.static else _encode
    vectors = encode(model, tokenizer, texts)
    np.save(arguments.out, vectors.astype(np.float16))
    seconds = time.perf_counter() - started
    print(f"{len(texts):,} passages, {vectors.shape[1]} dimensions, {seconds:.0f} s")


def _passages(corpora: list[Path], words: int, count: int) -> list[str]:
    found = []
    for corpus in corpora:
        for document in read_documents(corpus):
            split = document.text.split()
            starts = range(0, max(1, len(split) - words + 1), words)
            found += [" ".join(split[start : start + words]) for start in starts]
    chosen = np.random.default_rng(0).permutation(len(found))[:count]
    return [found[i] for i in chosen.tolist()]


def _encode(model: Any, tokenizer: Any, texts: list[str], batch: int = 64) -> Any:
    """Mean of the last hidden states, unit norm: float32 [n, d]."""
    parts = []
    shown = time.perf_counter()
    for start in range(0, len(texts), batch):
        inputs = tokenizer(
            texts[start : start + batch],
            padding=True,
            truncation=True,
            max_length=128,
            return_tensors="pt",
        )
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        parts.append(torch.nn.functional.normalize(mean, dim=1).numpy())
        if time.perf_counter() - shown > 30:
            shown = time.perf_counter()
            print(f"{start + batch:,} of {len(texts):,}", flush=True)
    return np.concatenate(parts)


def _static(model: Any, tokenizer: Any, texts: list[str]) -> Any:
    vocabulary = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    table = _encode(model, tokenizer, [word.removeprefix("##") for word in vocabulary], 512)
    ids = [
        np.array(row, np.int64) for row in tokenizer(texts, add_special_tokens=False)["input_ids"]
    ]
    share = np.bincount(np.concatenate(ids), minlength=len(table)) / sum(map(len, ids))
    table = table * (_SMOOTHING / (_SMOOTHING + share))[:, None]
    vectors = np.stack([table[row].sum(0) for row in ids])
    vectors -= vectors.mean(0)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


if __name__ == "__main__":
    main()
