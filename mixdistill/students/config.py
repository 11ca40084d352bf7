"""DecoderConfig: everything that makes one decoder differ from another. Plain data: it is printed in recipes, hashed
into a run's identity and stored beside exported weights."""

import dataclasses
import typing
from typing import Literal

from mixdistill.errors import UserError, unknown

MlpKind = Literal["swiglu", "gelu", "relu"]
Dtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "dots", "full"]

SIZES = ("vocab_size", "embed", "layers", "heads", "kv_heads", "head_dim", "mlp")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretch of the rotary wavelengths: those longer than `original_length / low_freq_factor` tokens are
    stretched by `factor`, those shorter than `original_length / high_freq_factor` are kept, between them it is blended
    (the "llama3" rope type of model configurations)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes and choices of one decoder; raises `UserError` when they do not fit together."""

    vocab_size: int
    embed: int  # width of the residual stream
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int  # width inside the MLP
    mlp_kind: MlpKind = "swiglu"
    rope_base: float | None = 10_000.0  # None: no position encoding at all
    rope_scaling: RopeScaling | None = None
    conv_width: int = 0  # causal depthwise convolution on the attention input, in tokens; 0: none
    qk_norm: bool = False
    qkv_bias: bool = False
    tied: bool = False  # the unembedding is the embedding
    norm_eps: float = 1e-6
    soft_cap: float | None = None  # logits become soft_cap * tanh(logits / soft_cap)
    embed_std: float | None = None  # None: 0.5, or embed ** -0.5 where tied
    dtype: Dtype = "float32"  # of activations and matrix products; norms, softmax and rotation stay in float32
    param_dtype: Dtype = "float32"
    remat: Remat = "none"  # what the backward pass recomputes in a layer: nothing, all but matrix products, everything
    unroll: int = 1  # layers a scan iteration holds; more trades compile time for speed

    def __post_init__(self):
        for name in (*SIZES, "unroll"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"decoder {name} is {value!r}; it must be a whole number of at least 1")
        for name, kind in (("mlp_kind", MlpKind), ("dtype", Dtype), ("param_dtype", Dtype), ("remat", Remat)):
            if getattr(self, name) not in typing.get_args(kind):
                raise unknown(f"decoder {name}", str(getattr(self, name)), typing.get_args(kind))
        if self.heads % self.kv_heads:
            raise UserError(f"decoder has {self.heads} heads and {self.kv_heads} kv_heads; heads must be a multiple")
        if self.rope_base is not None and self.head_dim % 2:
            raise UserError(
                f"decoder head_dim is {self.head_dim}; rotary positions need an even one (or rope_base=None)"
            )
        if self.conv_width < 0 or self.conv_width == 1:
            raise UserError(f"decoder conv_width is {self.conv_width}; use 0 for none, or at least 2 tokens")
        for name in ("rope_base", "norm_eps", "soft_cap", "embed_std"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"decoder {name} is {value!r}; it must be positive")

    @property
    def num_params(self) -> int:
        """Number of parameters, counted from the sizes alone."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * self.embed * (queries + keys)
        attention += (queries + 2 * keys) * self.qkv_bias + 2 * self.head_dim * self.qk_norm
        mlp = (3 if self.mlp_kind == "swiglu" else 2) * self.embed * self.mlp
        layer = attention + mlp + (2 + self.conv_width) * self.embed
        return self.layers * layer + self.embed + (1 if self.tied else 2) * self.vocab_size * self.embed
