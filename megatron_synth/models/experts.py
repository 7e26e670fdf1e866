"""All experts of a rank in two grouped matrix products, on torch alone."""

import torch
from megatron.core.fusions.fused_bias_swiglu import weighted_bias_swiglu_impl
from megatron.core.transformer.moe.experts import SequentialMLP


class GroupedExperts(SequentialMLP):  # type: ignore[misc]  # Megatron-Core is untyped
    """SwiGLU experts by `torch.nn.functional.grouped_mm`.

    Megatron-Core has grouped experts with Transformer Engine only; without it each expert is a
    product of its own, too small to fill a GPU. Parameters, their names and checkpoints are those
    of `SequentialMLP`; the weights are stacked for each call, which costs a copy of them.
    """

    def forward(
        self,
        permuted_local_hidden_states: torch.Tensor,
        tokens_per_expert: torch.Tensor,
        permuted_probs: torch.Tensor,
    ) -> tuple[torch.Tensor, None]:
        """Each expert's MLP over its own tokens, times the router's weight.

        Args:
            permuted_local_hidden_states: [T, H], the tokens of expert 0 first, float32 or bfloat16.
            tokens_per_expert: int64[experts of this rank], adding up to T.
            permuted_probs: [T].

        Returns:
            [T, H] of the same dtype, and no bias.
        """
        hidden = permuted_local_hidden_states
        first = torch.stack([expert.linear_fc1.weight for expert in self.local_experts])
        second = torch.stack([expert.linear_fc2.weight for expert in self.local_experts])
        ends = tokens_per_expert.to(hidden.device).cumsum(0).to(torch.int32)
        both = torch.nn.functional.grouped_mm(hidden, first.transpose(1, 2), offs=ends)
        gated = weighted_bias_swiglu_impl(both, None, permuted_probs.unsqueeze(-1))
        return torch.nn.functional.grouped_mm(gated, second.transpose(1, 2), offs=ends), None
