"""What a model is."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from megatron_synth.config import Config
from megatron_synth.models.presets import PRESETS

_VOCABULARY_MULTIPLE = 128

Block = Literal["pre_norm", "post_norm"]
QkNormKind = Literal["none", "head", "projection"]

_QK_NORM_NAMES = {"none": False, "head": True}


def _qk_norm_by_name(value: Any) -> Any:
    return _QK_NORM_NAMES.get(value, value) if isinstance(value, str) else value


QkNorm = Annotated[bool | Literal["projection"], BeforeValidator(_qk_norm_by_name)]


class MoEConfig(Config):
    """A dropless mixture of experts in every layer, in OLMoE's manner.

    The router's softmax runs over all experts; the probabilities of the chosen ones are used as
    they are, not renormalised to 1. No shared expert.
    """

    num_experts: int = Field(ge=2)
    top_k: int = Field(ge=1)
    """Experts that each token goes to."""
    aux_loss: float = Field(default=0.01, ge=0)
    """Coefficient of the load-balancing loss (OLMoE: 0.01)."""
    z_loss: float = Field(default=0.001, ge=0)
    """Coefficient of the router's z-loss (OLMoE: 0.001)."""

    @model_validator(mode="after")
    def _top_k_fits(self) -> "MoEConfig":
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k={self.top_k} is more than num_experts={self.num_experts}")
        return self


class ModelConfig(Config):
    """A Llama-style decoder: RMSNorm, SwiGLU, rotary positions, no bias.

    `preset` fills every field that is not set; the sizes of a model without one must be set.
    """

    preset: str | None = None
    """Name of a preset (`megatron_synth.models.PRESETS`)."""
    num_layers: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_query_groups: int | None = Field(default=None, ge=1)
    """Key/value heads (grouped-query attention); None: one for each attention head."""
    head_dim: int | None = Field(default=None, ge=2)
    """Size of an attention head; None: hidden_size / num_attention_heads."""
    ffn_hidden_size: int = Field(ge=1)
    """Width of the SwiGLU MLP; of each expert in an MoE model."""
    vocab_size: int = Field(ge=2)
    """Token ids that can occur. Weights are padded to a multiple of 128; the padding is cut at
    export and masked in the loss."""
    block: Block = "pre_norm"
    """Where a layer's two norms stand: before attention and MLP (Llama), x + f(norm(x)); or after
    them (OLMo2), x + norm(f(x))."""
    qk_norm: QkNorm = False
    """RMSNorm on queries and keys. false or "none": none; true or "head": each head by itself
    (Qwen3's form); "projection": all heads as one vector (OLMo2, OLMoE)."""
    rope_base: float = Field(default=10_000.0, gt=0)
    norm_eps: float = Field(default=1e-5, gt=0)
    tie_embeddings: bool = False
    """Use the input embedding as output head."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of initial weights; the two projections into the residual stream get
    init_std / sqrt(2 * num_layers), as in GPT-2."""
    moe: MoEConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("preset") is None:
            return values
        name = values["preset"]
        if name not in PRESETS:
            near = difflib.get_close_matches(str(name), PRESETS, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"no preset {name!r}; {hint} presets: {', '.join(PRESETS)}")
        filled = {key: value for key, value in PRESETS[name].items() if value is not None}
        return {**filled, **values}

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ModelConfig":
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}; change one, or set head_dim"
            )
        if self.size_of_head % 2:
            raise ValueError(f"rotary positions need an even head size, not {self.size_of_head}")
        if self.num_attention_heads % self.query_groups:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_query_groups={self.query_groups}"
            )
        if self.moe and self.block == "post_norm":
            raise ValueError("block=post_norm has no MoE form here; use block=pre_norm (OLMoE's)")
        return self

    @property
    def qk_norm_kind(self) -> QkNormKind:
        """`qk_norm` by its name."""
        if self.qk_norm == "projection":
            return "projection"
        return "head" if self.qk_norm else "none"

    @property
    def size_of_head(self) -> int:
        """Size of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def query_groups(self) -> int:
        """Key/value heads."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def shape(self) -> dict[str, object]:
        """All that decides what the weights mean, defaults filled in.

        Models with equal shapes can take each other's weights; how weights are drawn and the
        coefficients of the router's losses are not part of it.
        """
        return {
            "num_layers": self.num_layers,
            "hidden_size": self.hidden_size,
            "num_attention_heads": self.num_attention_heads,
            "num_query_groups": self.query_groups,
            "head_dim": self.size_of_head,
            "ffn_hidden_size": self.ffn_hidden_size,
            "vocab_size": self.vocab_size,
            "block": self.block,
            "qk_norm": self.qk_norm,
            "rope_base": self.rope_base,
            "norm_eps": self.norm_eps,
            "tie_embeddings": self.tie_embeddings,
            "moe.num_experts": self.moe.num_experts if self.moe else None,
            "moe.top_k": self.moe.top_k if self.moe else None,
        }

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: the next multiple of 128.

        The same whatever the tensor-parallel size, so that a checkpoint fits every layout.
        """
        return -(-self.vocab_size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
