"""A model's description: ours to Hugging Face's config.json and back.

Five classes of transformers have a place here, told apart by the block, the QK-norm and experts.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_synth.config import ConfigError, DataError, parse_config
from megatron_synth.models.config import Block, ModelConfig, QkNormKind


@dataclass(frozen=True)
class _Form:
    architecture: str
    model_type: str
    block: Block
    qk_norm: QkNormKind
    moe: bool = False


_FORMS = (
    _Form("LlamaForCausalLM", "llama", "pre_norm", "none"),
    _Form("Qwen3ForCausalLM", "qwen3", "pre_norm", "head"),
    _Form("Qwen3MoeForCausalLM", "qwen3_moe", "pre_norm", "head", moe=True),
    _Form("Olmo2ForCausalLM", "olmo2", "post_norm", "projection"),
    _Form("OlmoeForCausalLM", "olmoe", "pre_norm", "projection", moe=True),
)
_OLMO = ("olmo2", "olmoe")

# What each class has as a setting and this project's models have in one way only. A setting that a
# class does not know counts as the value here.
_ONLY: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "clip_qkv": None,
    "norm_topk_prob": False,
    "use_sliding_window": False,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
    "quantization_config": None,
}


def hugging_face_config(config: ModelConfig, *, max_positions: int) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        ConfigError: transformers has no class of this form.
    """
    form = _form_of(config)
    common = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.query_groups,
        "head_dim": config.size_of_head,
        "max_position_embeddings": max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "rope_scaling": None,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": config.init_std,
        "use_cache": True,
        "architectures": [form.architecture],
        "model_type": form.model_type,
    }
    if config.moe:
        common |= {
            "num_experts": config.moe.num_experts,
            "num_experts_per_tok": config.moe.top_k,
            "norm_topk_prob": False,
            "router_aux_loss_coef": config.moe.aux_loss,
            "output_router_logits": False,
        }
    if form.model_type in _OLMO:
        common.pop("head_dim")  # these classes derive it
        return {**common, "clip_qkv": None} if config.moe else common
    if form.model_type == "qwen3_moe":
        common |= {
            "moe_intermediate_size": config.ffn_hidden_size,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    if form.model_type == "llama":
        return {**common, "mlp_bias": False}
    return {**common, "use_sliding_window": False}


def _form_of(config: ModelConfig) -> _Form:
    for form in _FORMS:
        if (config.block, config.qk_norm_kind, config.moe is not None) == (
            form.block,
            form.qk_norm,
            form.moe,
        ):
            break
    else:
        said = f"block={config.block}, qk_norm={config.qk_norm_kind}"
        raise ConfigError(
            f"Hugging Face has no {'MoE' if config.moe else 'dense'} model with {said}",
            where="model",
            fix="Its MoE models with OLMoE's router have qk_norm: true (Qwen3-MoE's form) or "
            "projection (OLMoE's)."
            if config.moe
            else "block: pre_norm goes with qk_norm: false or true, block: post_norm with "
            "qk_norm: projection.",
        )
    if form.model_type in _OLMO and (
        config.size_of_head * config.num_attention_heads != config.hidden_size
    ):
        raise ConfigError(
            f"{form.architecture} has heads of hidden_size / num_attention_heads only, not of "
            f"{config.size_of_head}",
            where="model.head_dim",
            fix="Leave head_dim out.",
        )
    return form


def read_hugging_face_config(folder: Path) -> ModelConfig:
    """What the model in a Hugging Face folder is.

    Args:
        folder: It holds config.json.

    Raises:
        ConfigError: A model of another kind than this project builds.
        DataError: There is no config.json, or it is damaged.
    """
    form, described = _read(folder)
    for key, value in _ONLY.items():
        found = getattr(described, key, value)
        if found != value and found is not None:
            raise ConfigError(
                f"{key}={found} is not supported; the models here have {json.dumps(value)}",
                where=folder / "config.json",
                fix="Start from another model.",
            )
    heads, hidden = described.num_attention_heads, described.hidden_size
    head_dim = getattr(described, "head_dim", None) or hidden // heads
    sizes: dict[str, Any] = {
        "num_layers": described.num_hidden_layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_query_groups": described.num_key_value_heads,
        "head_dim": None if head_dim * heads == hidden else head_dim,
        "ffn_hidden_size": described.intermediate_size,
        "vocab_size": described.vocab_size,
        "block": form.block,
        "qk_norm": form.qk_norm,
        "rope_base": _rope_base(described, folder),
        "norm_eps": described.rms_norm_eps,
        "tie_embeddings": described.tie_word_embeddings,
        "init_std": described.initializer_range,
    }
    if form.moe:
        if form.model_type == "qwen3_moe":
            sizes["ffn_hidden_size"] = described.moe_intermediate_size
        sizes["moe"] = {
            "num_experts": described.num_experts,
            "top_k": described.num_experts_per_tok,
            "aux_loss": described.router_aux_loss_coef,
        }
    return parse_config(sizes, ModelConfig, where=str(folder / "config.json"))


def _read(folder: Path) -> tuple[_Form, Any]:
    """The form, and transformers' own reading of config.json, its defaults filled in."""
    from transformers import AutoConfig

    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        named = content.get("architectures") or [content.get("model_type")]
    except FileNotFoundError as error:
        raise DataError(
            "there is no config.json",
            where=folder,
            fix="Give the folder of a Hugging Face model.",
        ) from error
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"it cannot be read: {error}", where=path) from error
    for form in _FORMS:
        if named in ([form.architecture], [form.model_type]):
            break
    else:
        raise ConfigError(
            f"a model of the architecture {', '.join(map(str, named))}",
            where=path,
            fix=f"These can be read: {', '.join(form.architecture for form in _FORMS)}.",
        )
    settings = {key: value for key, value in content.items() if key != "model_type"}
    try:
        return form, AutoConfig.for_model(form.model_type, **settings)
    except Exception as error:  # transformers has its own errors for each kind of damage
        raise DataError(f"transformers refuses it: {error}", where=path) from error


def _rope_base(described: Any, folder: Path) -> float:
    # transformers 5 has one entry, transformers 4 two.
    rope = getattr(described, "rope_parameters", None) or {
        **(getattr(described, "rope_scaling", None) or {}),
        "rope_theta": getattr(described, "rope_theta", None),
    }
    kind = rope.get("rope_type", rope.get("type", "default"))
    partial = rope.get("partial_rotary_factor", 1.0)
    if kind != "default" or partial != 1.0:
        raise ConfigError(
            f"rotary positions are scaled ({kind}, share of a head {partial:g}), which is not "
            "supported",
            where=folder / "config.json",
            fix="Start from a model with plain rotary positions.",
        )
    return float(rope["rope_theta"])
