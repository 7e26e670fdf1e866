"""Embeddings in, pairs of related documents out.

In: `embeddings.npy` (unit rows) and the documents file that it was made from. Out: `pairs.parquet`
(d1, d2, similarity) and `report.json` (similarities, drops by reason, samples to read).
Cost: exact search up to 50,000 documents (800 documents: under a second; 50,000 × 256: about a
minute on 2 cores), FAISS inverted lists beyond, tuned to a recall; memory: at most one copy of the
float16 vectors beside the file, and k neighbours a document.
"""

from megatron_synth.pairing.config import PairConfig
from megatron_synth.pairing.pairs import find_pairs, read_pairs

__all__ = ["PairConfig", "find_pairs", "read_pairs"]
