"""A Llama with random weights, small enough for a CPU and large enough for vLLM's kernels."""

from pathlib import Path

VOCABULARY = 384
CONTEXT = 256


def save_tiny_llama(
    folder: Path, *, vocab_size: int = VOCABULARY, context: int = CONTEXT, head_size: int = 32
) -> Path:
    """Save the model in Hugging Face form."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=2 * head_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
