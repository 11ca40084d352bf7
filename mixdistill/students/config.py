"""DecoderConfig: everything that makes one decoder differ from another. Plain data: it is printed in recipes, hashed
into a run's identity and stored beside exported weights."""

import dataclasses
import typing
from typing import Literal

from mixdistill.errors import UserError, unknown

MlpKind = Literal["swiglu", "geglu", "gelu", "relu"]
Norms = Literal["pre", "sandwich"]
Dtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "dots", "full"]

GATED = ("swiglu", "geglu")
SIZES = ("vocab_size", "embed", "layers", "heads", "kv_heads", "head_dim", "mlp")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretch of the rotary wavelengths: those longer than `original_length / low_freq_factor` tokens are
    stretched by `factor`, those shorter than `original_length / high_freq_factor` are kept, between them it is blended
    (the "llama3" rope type of model configurations). With `original_length` 0 all are stretched alike ("linear")."""

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 0


@dataclasses.dataclass(frozen=True)
class Window:
    """Layers that see the last `tokens` tokens alone, themselves among them; all but those of `full_layers`."""

    tokens: int
    full_layers: tuple[int, ...] = ()  # indices from 0, ascending
    rope_base: float | None = None  # of the windowed layers, without rope_scaling; None: as in the others


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
    window: Window | None = None
    conv_width: int = 0  # causal depthwise convolution on the attention input, in tokens; 0: none
    qk_norm: bool = False
    qkv_bias: bool = False
    attention_scale: float | None = None  # of queries times keys; None: head_dim ** -0.5
    norms: Norms = "pre"  # sandwich: also behind attention and MLP, and scales are kept as their distance from 1
    embed_scaled: bool = False  # token embeddings are multiplied by embed ** 0.5
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
        kinds = {"mlp_kind": MlpKind, "norms": Norms, "dtype": Dtype, "param_dtype": Dtype, "remat": Remat}
        for name, kind in kinds.items():
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
        for name in ("rope_base", "norm_eps", "soft_cap", "embed_std", "attention_scale"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"decoder {name} is {value!r}; it must be positive")
        if self.window is not None:
            self._check_window(self.window)

    def _check_window(self, window: Window) -> None:
        known = set(range(self.layers))
        if window.tokens < 1:
            raise UserError(f"decoder window is of {window.tokens} tokens; it must be at least 1")
        if not set(window.full_layers) <= known or list(window.full_layers) != sorted(set(window.full_layers)):
            raise UserError(
                f"decoder window has full_layers {window.full_layers}; they are ascending indices below {self.layers}"
            )
        if window.rope_base is not None and (self.rope_base is None or window.rope_base <= 0):
            raise UserError(f"decoder window rope_base is {window.rope_base}; it is positive, and rope_base is given")

    @property
    def num_params(self) -> int:
        """Number of parameters, counted from the sizes alone."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * self.embed * (queries + keys)
        attention += (queries + 2 * keys) * self.qkv_bias + 2 * self.head_dim * self.qk_norm
        mlp = (3 if self.mlp_kind in GATED else 2) * self.embed * self.mlp
        layer = attention + mlp + (2 * (1 + (self.norms == "sandwich")) + self.conv_width) * self.embed
        return self.layers * layer + self.embed + (1 if self.tied else 2) * self.vocab_size * self.embed
