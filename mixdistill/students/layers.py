"""What a decoder layer computes, as functions of arrays. B rows, T (or S) tokens, D embed, H heads, K kv_heads, E
head_dim. Reductions run in float32; results come back in the dtype of the input."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mixdistill.students.config import RopeScaling

Rotation = tuple[Float[Array, "B T 1 F"], Float[Array, "B T 1 F"]]  # cosine and sine


def rms_norm(
    x: Float[Array, "*B D"], scale: Float[Array, "D"], eps: float, *, from_one: bool = False
) -> Float[Array, "*B D"]:
    """Root mean square normalisation over the last axis (arXiv:1910.07467). With `from_one` the scale is kept as its
    distance from 1, and multiplied in float32."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    if from_one:
        return (wide * (1.0 + scale.astype(jnp.float32))).astype(x.dtype)
    return wide.astype(x.dtype) * scale.astype(x.dtype)


def wavelengths(head_dim: int, base: float, scaling: RopeScaling | None) -> Float[Array, "F"]:
    """Rotary angular frequencies in radians a token, float32, F = head_dim / 2 (arXiv:2104.09864)."""
    frequency = base ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is None:
        return frequency
    if not scaling.original_length:
        return frequency / scaling.factor
    turns = scaling.original_length * frequency / (2 * math.pi)  # full turns within the original length
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = jnp.clip(blend, 0.0, 1.0)
    return kept * frequency + (1 - kept) * frequency / scaling.factor


def rotation(position: Int[Array, "B T"], frequency: Float[Array, "F"]) -> Rotation:
    """Cosine and sine of every token's angles, in float32: bfloat16 cannot tell neighbouring positions apart."""
    angle = position.astype(jnp.float32)[:, :, None, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Float[Array, "B T N E"], turn: Rotation | None) -> Float[Array, "B T N E"]:
    """Rotary position encoding, first half of the head against the second; None leaves x as it is."""
    if turn is None:
        return x
    cosine, sine = turn
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def packed_mask(segment_id: Int[Array, "B T"], window: int | None = None) -> Bool[Array, "B 1 T T"]:
    """Who may look at whom: earlier tokens (and itself) of the same segment, the last `window` of them. Padding sees
    padding, so that no row of the softmax is empty."""
    order = jnp.arange(segment_id.shape[1])
    same = segment_id[:, :, None] == segment_id[:, None, :]
    back = order[:, None] - order[None, :]
    return (same & (back >= 0) & (window is None or back < window))[:, None]


def attention(
    query: Float[Array, "B S H E"],
    key: Float[Array, "B T K E"],
    value: Float[Array, "B T K E"],
    mask: Bool[Array, "B 1 S T"],
    scale: float | None = None,
) -> Float[Array, "B S H E"]:
    """Grouped-query attention (arXiv:2305.13245) with a float32 softmax of `scale` (None: E ** -0.5) times the inner
    products. A query whose mask is empty gets a finite mean of the values, never NaN."""
    return jax.nn.dot_product_attention(query, key, value, mask=mask, scale=scale, implementation="xla")


def causal_convolution(
    x: Float[Array, "B L D"], segment_id: Int[Array, "B L"], weight: Float[Array, "W D"]
) -> Float[Array, "B T D"]:
    """Depthwise convolution over the last W tokens of the same segment; weight[j] meets the token j places back.

    x and segment_id begin with W - 1 tokens of history: L = W - 1 + T.
    """
    width = weight.shape[0]
    num_tokens = x.shape[1] - (width - 1)
    here = segment_id[:, width - 1 :]
    out = jnp.zeros((x.shape[0], num_tokens, x.shape[2]), x.dtype)
    for back in range(width):
        window = slice(width - 1 - back, width - 1 - back + num_tokens)
        out += jnp.where((segment_id[:, window] == here)[..., None], x[:, window], 0) * weight[back].astype(x.dtype)
    return out
