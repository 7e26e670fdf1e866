"""Token losses in one pass over the logits."""

import torch


def token_losses(logits: torch.Tensor, labels: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Cross-entropy of each token, nats.

    Args:
        logits: [S, B, V padded], any floating dtype; what lies beyond `vocab_size` takes no part.
        labels: int64[S, B], below `vocab_size`.
        vocab_size: Tokens that exist, V.

    Returns:
        float32[S, B].
    """
    real = logits[..., :vocab_size].float()
    chosen = real.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return torch.logsumexp(real, dim=-1) - chosen


compiled_token_losses = torch.compile(token_losses)
"""`token_losses` as fused kernels: no float32 copy of the logits is stored, forward or backward."""
