"""Script for two ranks: the norm over the whole projection, split, against the whole one.

two_rank_norm.py OUT [LEFT_OUT]: rank 0 writes the largest differences as JSON; LEFT_OUT names a
reduction of `megatron_synth.models.norms` that is replaced by nothing.
"""

import json
import sys
from pathlib import Path

import torch
from megatron.core import parallel_state

from megatron_synth.models import ModelConfig, norms
from megatron_synth.models.build import transformer_config
from megatron_synth.runtime import ParallelConfig, initialize, is_main_rank

HEADS, SIZE = 6, 8


def differences():
    parallel = ParallelConfig(tensor_parallel=2)
    initialize(parallel, threads=1)
    config = ModelConfig(
        num_layers=1,
        hidden_size=HEADS * SIZE,
        num_attention_heads=HEADS,
        ffn_hidden_size=64,
        vocab_size=256,
        qk_norm="projection",
    )
    split = norms.ProjectionRMSNorm(
        transformer_config(config, parallel, torch.float64), SIZE, HEADS, eps=1e-5
    )
    torch.manual_seed(0)
    heads = torch.randn(5, 2, HEADS, SIZE, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(HEADS * SIZE, dtype=torch.float64, requires_grad=True)
    onto = torch.randn(5, 2, HEADS, SIZE, dtype=torch.float64)
    flat = heads.flatten(-2)
    scale = torch.rsqrt(flat.square().mean(-1, keepdim=True) + 1e-5)
    whole = (flat * scale * weight).view(heads.shape)
    (whole * onto).sum().backward()

    rank = parallel_state.get_tensor_model_parallel_rank()
    mine = slice(rank * HEADS // 2, (rank + 1) * HEADS // 2)
    share = weight.grad.view(HEADS, SIZE)[mine].flatten()
    with torch.no_grad():
        split.weight.copy_(weight.view(HEADS, SIZE)[mine].flatten())
    part = heads.detach()[..., mine, :].clone().requires_grad_()
    result = split(part)
    (result * onto[..., mine, :]).sum().backward()
    found = {
        "output": result - whole[..., mine, :],
        "gradient": part.grad - heads.grad[..., mine, :],
        "weight": split.weight.grad - share,
    }
    worst = torch.stack([difference.abs().max() for difference in found.values()])
    torch.distributed.all_reduce(worst, op=torch.distributed.ReduceOp.MAX)
    return dict(zip(found, worst.tolist(), strict=True))


if __name__ == "__main__":
    for name in sys.argv[2:]:
        assert hasattr(norms, name)
        setattr(norms, name, lambda tensor: tensor)
    measured = differences()
    if is_main_rank():
        Path(sys.argv[1]).write_text(json.dumps(measured))
