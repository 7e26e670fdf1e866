"""A llama2.c checkpoint (such as stories260K.bin) as a Hugging Face Llama that vLLM can run.

vLLM on a CPU has no attention kernel for heads narrower than 32. Narrower ones are widened with
zeros; the rotation of each pair keeps its frequency, and the queries take up the change of the
softmax's scale, so that the logits stay what they were.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEADER = struct.Struct("<7i")
_THETA = 10_000.0
_NARROWEST = 32

Weights = NDArray[np.float32]


def convert(checkpoint: Path, folder: Path) -> Path:
    """Write `folder` (config.json, model.safetensors) from a checkpoint of version 0.

    Raises:
        ValueError: Not such a file, or heads that cannot be widened.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    data = checkpoint.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, context = _HEADER.unpack_from(data)
    tied, vocab = vocab > 0, abs(vocab)
    old = dim // heads
    new = max(old, _NARROWEST)
    if new % old or old % 2:
        raise ValueError(f"heads of {old} cannot be widened to {new}")
    flat = np.frombuffer(data, "<f4", offset=_HEADER.size)
    at = 0

    def take(*shape: int) -> Weights:
        nonlocal at
        size = int(np.prod(shape))
        at += size
        return flat[at - size : at].reshape(shape)

    embedding = take(vocab, dim)
    attention_norm = take(layers, dim)
    q = take(layers, heads, old, dim)
    k = take(layers, kv_heads, old, dim)
    v = take(layers, kv_heads, old, dim)
    o = take(layers, dim, heads, old)
    ffn_norm = take(layers, dim)
    gate, down, up = take(layers, hidden, dim), take(layers, dim, hidden), take(layers, hidden, dim)
    final_norm = take(dim)
    take(context, old)  # the rotation's table
    head = embedding if tied else take(vocab, dim)

    state: dict[str, Any] = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": final_norm,
        "lm_head.weight": head,
    }
    for n in range(layers):
        prefix = f"model.layers.{n}"
        state |= {
            f"{prefix}.input_layernorm.weight": attention_norm[n],
            f"{prefix}.post_attention_layernorm.weight": ffn_norm[n],
            f"{prefix}.self_attn.q_proj.weight": _rotated(q[n], new) * (new / old) ** 0.5,
            f"{prefix}.self_attn.k_proj.weight": _rotated(k[n], new),
            f"{prefix}.self_attn.v_proj.weight": _widened(v[n], new).reshape(-1, dim),
            f"{prefix}.self_attn.o_proj.weight": _widened(o[n].transpose(1, 2, 0), new)
            .reshape(-1, dim)
            .T,
            f"{prefix}.mlp.gate_proj.weight": gate[n],
            f"{prefix}.mlp.down_proj.weight": down[n],
            f"{prefix}.mlp.up_proj.weight": up[n],
        }
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=new,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        rope_theta=_THETA,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict({k: torch.tensor(np.ascontiguousarray(w)) for k, w in state.items()})
    model.save_pretrained(folder)
    return folder


def _widened(weights: Weights, new: int) -> Weights:
    """[heads, old, dim] -> [heads, new, dim], zeros behind."""
    heads, old, dim = weights.shape
    wide = np.zeros((heads, new, dim), np.float32)
    wide[:, :old] = weights
    return wide


def _rotated(weights: Weights, new: int) -> Weights:
    """[heads, old, dim] -> [heads * new, dim], as Hugging Face pairs the rotated rows.

    llama2.c turns rows 2i and 2i + 1 by theta ** (-2i / old), Hugging Face rows j and j + new / 2
    by theta ** (-2j / new): equal for j = i * new / old.
    """
    heads, old, dim = weights.shape
    wide = np.zeros((heads, new, dim), np.float32)
    for pair in range(old // 2):
        place = pair * new // old
        wide[:, place] = weights[:, 2 * pair]
        wide[:, place + new // 2] = weights[:, 2 * pair + 1]
    return wide.reshape(heads * new, dim)
