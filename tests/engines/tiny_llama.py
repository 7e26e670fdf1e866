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


def save_parrot(folder: Path, word: str, *, context: int = 4096) -> Path:
    """Save a model that answers anything with one word and then ends, with its tokenizer.

    Its layer adds nothing, and its head knows what follows each token: the word, and after the
    word the end.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from megatron_synth.tokens import train_tokenizer

    tokenizer = train_tokenizer([f"{word}\n" * 100], 300, folder)
    [said] = tokenizer.encode(word)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=320,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=10,
        num_key_value_heads=1,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(tokenizer.vocab_size, 320))
        model.lm_head.weight.zero_()
        model.lm_head.weight[said] = 1.0
        model.lm_head.weight[said, said] = 0.0
        model.lm_head.weight[tokenizer.eos_id, said] = 1.0
    model.save_pretrained(folder)
    return folder
