"""Context parallelism on a CPU, for tests: what Transformer Engine's attention does, the slow way.

Keys and values of all ranks are gathered, so that all else of context parallelism (which pieces of
a window a rank reads, losses, gradients, norms) can be compared with one rank.
"""

import contextlib
from unittest import mock

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule


class GatheredAttention(MegatronModule):
    def __init__(self, config, *_, **__):
        super().__init__(config=config)
        self.scale = config.kv_channels**-0.5

    def forward(self, query, key, value, *_, **__):
        """[S / ranks, B, heads, D] each, of this rank's two pieces."""
        group = parallel_state.get_context_parallel_group()
        key, value = (gather_from_sequence_parallel_region(x, group=group) for x in (key, value))
        places = [self.places(rank, len(query)) for rank in range(group.size())]
        mask = places[group.rank()][:, None] >= torch.cat(places)[None]
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        context = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=self.scale, enable_gqa=True
        )
        return context.permute(2, 0, 1, 3).flatten(2)

    @staticmethod
    def places(rank, size):
        ranks, piece = parallel_state.get_context_parallel_world_size(), size // 2
        pieces = (rank, 2 * ranks - 1 - rank)
        return torch.cat([torch.arange(n * piece, (n + 1) * piece) for n in pieces])


@contextlib.contextmanager
def context_parallel():
    with (
        mock.patch("megatron_synth.models.specs.SdpaCoreAttention", GatheredAttention),
        mock.patch("megatron_synth.training.loop.require_engine"),
    ):
        yield
