"""Named model sizes (METHODS 4). A preset fills the fields that the user does not set.

`None` in a preset means unpublished: the user must set it. Our own choices are marked so.
"""

from typing import Any

LLAMA3_VOCABULARY = 128_256


def lingua_ffn(hidden: int) -> int:
    """The SwiGLU width of Meta Lingua's rule: 8/3 of the hidden size, up to a multiple of 256."""
    return -(-(8 * hidden // 3) // 256) * 256


def _llama(layers: int, hidden: int, heads: int, ffn: int, **other: Any) -> dict[str, Any]:
    return {
        "num_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "ffn_hidden_size": ffn,
        **other,
    }


def _demystifying(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    # Table 1 prints no SwiGLU width; rope base, untied head: our choice, Llama-3's values.
    return _llama(
        layers,
        hidden,
        heads,
        lingua_ffn(hidden),
        vocab_size=LLAMA3_VOCABULARY,
        rope_base=500_000.0,
    )


def _sbp(layers: int, hidden: int, heads: int, ffn: int) -> dict[str, Any]:
    # Tying is unpublished; untied is our choice, as in Llama-3's larger models.
    return _llama(
        layers,
        hidden,
        heads,
        ffn,
        num_query_groups=8,
        qk_norm=True,
        vocab_size=49_152,
        rope_base=500_000.0,
    )


def _olmo2(layers: int, hidden: int, heads: int, ffn: int) -> dict[str, Any]:
    return _llama(
        layers,
        hidden,
        heads,
        ffn,
        vocab_size=100_278,
        block="post_norm",
        qk_norm="projection",
        rope_base=500_000.0,
        norm_eps=1e-6,
    )


PRESETS: dict[str, dict[str, Any]] = {
    # 1.84M parameters. Untied: after 1M tokens of Wikipedia its held-out loss was 5.46, the tied
    # one (1.32M) had 5.78 at the same settings.
    "quickstart-1m": _llama(4, 128, 4, 344, vocab_size=4096),
    # Two of eight experts a token, in OLMoE's manner; per-head QK-norm, since Hugging Face has a
    # form for that (Qwen3-MoE) and none for an MoE of this kind without it.
    "quickstart-moe": _llama(
        4,
        128,
        4,
        128,
        vocab_size=4096,
        qk_norm=True,
        moe={"num_experts": 8, "top_k": 2},
    ),
    # The two sizes of OLMo2's block that SynPro trains: 268M of 474M and 1.1B of 1.48B parameters
    # are outside the embeddings.
    "olmo2-400m": _olmo2(16, 1024, 16, 4096),
    "olmo2-1b": _olmo2(16, 2048, 16, 8192),
    # 6.9B parameters, 1.3B active.
    "olmoe-7b-a1b": _llama(
        16,
        2048,
        16,
        1024,
        vocab_size=50_304,
        qk_norm="projection",
        moe={"num_experts": 64, "top_k": 8, "aux_loss": 0.01, "z_loss": 0.001},
    ),
    "sbp-3b": _sbp(26, 3072, 24, 8064),
    "sbp-6b": _sbp(32, 4096, 32, 13_056),
    # RoPE base: unpublished, ours is Llama-3's.
    "megadocs-300m": _llama(12, 768, 12, 2688, vocab_size=LLAMA3_VOCABULARY, rope_base=500_000.0),
    # What the paper's Table 1 prints: 154M parameters, not the 300M of its name.
    "megadocs-table1": _llama(6, 512, 8, 1792, vocab_size=LLAMA3_VOCABULARY, rope_base=500_000.0),
    "megadocs-1.5b": _llama(
        36,
        1536,
        16,
        5376,
        num_query_groups=8,
        vocab_size=LLAMA3_VOCABULARY,
        rope_base=500_000.0,
    ),
    "llama-100m": _demystifying(7, 576, 9),
    "llama-200m": _demystifying(10, 832, 13),
    "llama-500m": _demystifying(16, 1280, 20),
    "llama-1b": _demystifying(22, 1792, 28),
    "llama-2b": _demystifying(28, 2240, 35),
    "llama-3b": _demystifying(32, 2624, 41),
}
