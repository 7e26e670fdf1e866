"""Script for two ranks: a Hugging Face folder's model in a layout, and its losses.

two_rank_weights.py FOLDER LAYOUT_JSON OUT: rank 0 writes the losses of fixed tokens as JSON.
"""

import json
import sys
from pathlib import Path

import torch

from megatron_synth.models import build_model, load_whole_weights, read_hugging_face
from megatron_synth.runtime import ParallelConfig, initialize, is_main_rank


def losses(folder, layout):
    parallel = ParallelConfig(**layout)
    initialize(parallel, threads=1)
    config, weights = read_hugging_face(folder)
    model = build_model(config, parallel, sequence_length=64, seed=5, dtype=torch.float64)
    load_whole_weights(model, weights)
    tokens = torch.arange(64).view(2, 32) * 5 % config.vocab_size
    positions = torch.arange(32).expand_as(tokens)
    with torch.no_grad():
        return model(
            input_ids=tokens, position_ids=positions, attention_mask=None, labels=tokens.flip(1)
        )


if __name__ == "__main__":
    found = losses(Path(sys.argv[1]), json.loads(sys.argv[2])).tolist()
    if is_main_rank():
        Path(sys.argv[3]).write_text(json.dumps(found))
