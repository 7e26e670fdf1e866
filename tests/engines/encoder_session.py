"""Run by test_encoder_vllm.py in a process of its own: vLLM changes torch for the whole process."""

import json
import sys
from pathlib import Path

import numpy as np
from tiny_encoder import save_encoder
from transformers import Qwen3Config, Qwen3Model

from megatron_synth.engines.embedding import EmbedConfig, embed_documents
from megatron_synth.runs import Progress

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}


def main(folder: Path) -> None:
    bert = save_encoder(folder / "bert", hidden=64)
    qwen = save_encoder(folder / "Qwen3-Embedding-0.6B", pooling={"pooling_mode_lasttoken": True})
    (qwen / "model.safetensors").unlink()
    config = Qwen3Config(vocab_size=32, hidden_size=64, intermediate_size=64, head_dim=32, **SIZES)
    config.max_position_embeddings = 64
    Qwen3Model(config).save_pretrained(qwen)
    found = {}
    for name, encoder in (("mean", bert), ("last", qwen)):
        vectors = []
        for engine in ("transformers", "vllm"):
            out = folder / f"{name}-{engine}"
            settings = EmbedConfig(
                encoder=str(encoder), engine=engine, device="cpu", long_documents="chunks"
            )
            counts = embed_documents(
                settings, str(folder / "documents.jsonl"), None, out, Progress()
            )
            vectors.append(np.load(out / "embeddings.npy").astype(np.float64))
        found[name] = {
            "largest_difference": float(np.abs(vectors[0] - vectors[1]).max()),
            "smallest_norm": float(np.linalg.norm(vectors[1], axis=1).min()),
            "documents": counts["documents"],
            "chunked": counts["chunked"],
        }
    (folder / "results.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
