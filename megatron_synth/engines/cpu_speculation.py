"""Mends sampling beside n-gram speculation on a CPU; vLLM's worker imports this module by name.

vLLM 0.32's CPU kernel that spreads a request's temperature and top_p over its guessed tokens
writes into a copy of its output (`vllm.utils.cpu_triton_utils._expand_kernel_impl` turns floats
into int64 first), so that what comes back is whatever the memory held. Requests that are sampled,
and greedy ones in the same batch, then follow another distribution, banned ids included.
"""

from typing import Any

import torch
from vllm.v1.sample import rejection_sampler


class MendedSpeculation:
    """An extension of vLLM's worker that adds nothing: importing it is what counts."""


def expand_batch_to_tokens(
    x: Any, cu_num_tokens: Any, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> Any:
    """Spread values of requests over their tokens.

    Args:
        x: One value a request, [requests].
        cu_num_tokens: Tokens of all requests up to each one, int[requests].
        num_tokens: Tokens of all requests.
        replace_from: A value of `x` that becomes
        replace_to: this one.

    Returns:
        Of the type of `x`, [num_tokens].
    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    replaced = torch.where(x == replace_from, replace_to, x)
    return replaced.repeat_interleave(counts, output_size=num_tokens)


rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens
