"""The decoder: token embedding, one pre-norm block scanned over depth, final norm, unembedding.

Parameters of all layers lie stacked in one array per kind, so the tree has about fifteen leaves at any depth and XLA
compiles one layer. flax sees the modules only while something is traced; outside there are plain nested dicts.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mixdistill.students import layers
from mixdistill.students.attention import attention, stay
from mixdistill.students.config import GATED, DecoderConfig
from mixdistill.students.rows import Rows, cached_rows, packed_rows, view
from mixdistill.students.student import Axes, Cache, Key, Params, Student, TokenBatch

__all__ = ["DecoderConfig", "make_student"]

CONV_STD = 0.3  # around the identity: enough to break symmetry, small enough to start as "the token itself"


class DecoderCache(NamedTuple):
    """Keys, values and the convolution's last inputs of all layers; slots fill from the left, equally in all rows."""

    key: Float[Array, "N B T K E"]
    value: Float[Array, "N B T K E"]
    recent: Float[Array, "N B W D"]  # W = conv_width - 1 (0 without convolution)
    valid: Bool[Array, "B T"]
    filled: Int[Array, ""]


class Maker(NamedTuple):
    """Makes parameters: `stack` is put in front of every shape."""

    rngs: nnx.Rngs
    dtype: str
    stack: tuple[int, ...] = ()

    def normal(self, shape: tuple[int, ...], axes: tuple[str | None, ...], std: float) -> nnx.Param:
        draw = jax.random.normal(self.rngs.params(), (*self.stack, *shape), jnp.float32)
        return self._param(std * draw, axes)

    def constant(self, shape: tuple[int, ...], axes: tuple[str | None, ...], value: float) -> nnx.Param:
        return self._param(jnp.full((*self.stack, *shape), value, jnp.float32), axes)

    def _param(self, value: Array, axes: tuple[str | None, ...]) -> nnx.Param:
        return nnx.Param(value.astype(self.dtype), logical_axes=("layers",) * len(self.stack) + axes)


class Attention(nnx.Module):
    """Projections around the attention of `layers.attention`."""

    def __init__(self, config: DecoderConfig, make: Maker):
        self.config = config
        embed, heads, kv_heads, head_dim = config.embed, config.heads, config.kv_heads, config.head_dim
        for name, count, axis in (
            ("query", heads, "heads"),
            ("key", kv_heads, "kv_heads"),
            ("value", kv_heads, "kv_heads"),
        ):
            setattr(self, name, make.normal((embed, count, head_dim), ("embed", axis, "head_dim"), embed**-0.5))
            if config.qkv_bias:
                setattr(self, f"{name}_bias", make.constant((count, head_dim), (axis, "head_dim"), 0.0))
        std = (heads * head_dim) ** -0.5 * (2 * config.layers) ** -0.5
        self.out = make.normal((heads, head_dim, embed), ("heads", "head_dim", "embed"), std)
        if config.qk_norm:
            self.query_norm = _norm_scale(config, make, head_dim)
            self.key_norm = _norm_scale(config, make, head_dim)

    def project(self, x: Float[Array, "B S D"], name: str) -> Float[Array, "B S N E"]:
        out = jnp.einsum("bsd,dne->bsne", x, getattr(self, name)[...].astype(x.dtype))
        return out + getattr(self, f"{name}_bias")[...].astype(x.dtype) if self.config.qkv_bias else out

    def position(self, x: Float[Array, "B S N E"], name: str, turn: layers.Rotation | None) -> Float[Array, "B S N E"]:
        if self.config.qk_norm:
            x = _normed(self.config, x, getattr(self, f"{name}_norm"))
        return layers.rotate(x, turn)

    def __call__(self, x: Float[Array, "B S D"], rows: Rows, cache: DecoderCache | None, layer: Int[Array, ""]):
        seen = view(self.config, rows, layer)
        query = self.position(self.project(x, "query"), "query", seen.turn)
        key = self.position(self.project(x, "key"), "key", seen.turn)
        value = self.project(x, "value")
        if cache is None:
            segment_id = rows.segment_id[:, -x.shape[1] :]
            mixed = attention(query, key, value, seen, segment_id, self.config, layer)
        else:
            place = (layer, 0, cache.filled, 0, 0)
            cache = cache._replace(
                key=jax.lax.dynamic_update_slice(cache.key, key[None].astype(cache.key.dtype), place),
                value=jax.lax.dynamic_update_slice(cache.value, value[None].astype(cache.value.dtype), place),
            )
            key, value = cache.key[layer].astype(x.dtype), cache.value[layer].astype(x.dtype)
            mixed = layers.attention(query, key, value, seen.mask, self.config.attention_scale)
        return jnp.einsum("bsne,ned->bsd", mixed, self.out[...].astype(x.dtype)), cache


class Mlp(nnx.Module):
    """Two matrices around a nonlinearity, or three where it is gated (SwiGLU and GeGLU, arXiv:2002.05202)."""

    def __init__(self, config: DecoderConfig, make: Maker):
        self.kind = config.mlp_kind
        embed, mlp = config.embed, config.mlp
        if self.kind in GATED:
            self.gate = make.normal((embed, mlp), ("embed", "mlp"), embed**-0.5)
        self.up = make.normal((embed, mlp), ("embed", "mlp"), embed**-0.5)
        self.down = make.normal((mlp, embed), ("mlp", "embed"), mlp**-0.5 * (2 * config.layers) ** -0.5)

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        # Rows and columns as one axis: XLA on CPUs takes half the time for the gradient of such a matrix product.
        flat = x.reshape(-1, x.shape[-1])
        up = flat @ self.up[...].astype(x.dtype)
        bend = {"swiglu": jax.nn.silu, "relu": jax.nn.relu}.get(self.kind, jax.nn.gelu)
        inner = bend(flat @ self.gate[...].astype(x.dtype)) * up if self.kind in GATED else bend(up)
        return (inner @ self.down[...].astype(x.dtype)).reshape(x.shape)


class Block(nnx.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)); what is added is normed too in a sandwich."""

    def __init__(self, config: DecoderConfig, make: Maker):
        self.config = config
        self.attention_norm = _norm_scale(config, make, config.embed)
        self.mlp_norm = _norm_scale(config, make, config.embed)
        if config.norms == "sandwich":
            self.attention_out_norm = _norm_scale(config, make, config.embed)
            self.mlp_out_norm = _norm_scale(config, make, config.embed)
        if config.conv_width:
            self.conv = make.normal((config.conv_width, config.embed), (None, None), CONV_STD)
            self.conv[...] = self.conv[...].at[:, 0].add(1.0)
        self.attention = Attention(config, make)
        self.mlp = Mlp(config, make)

    def __call__(self, x: Float[Array, "B S D"], rows: Rows, cache: DecoderCache | None, layer: Int[Array, ""]):
        inner = _normed(self.config, x, self.attention_norm)
        if self.config.conv_width:
            inner, cache = self.convolve(inner, rows, cache, layer)
        inner, cache = self.attention(inner, rows, cache, layer)
        x = x + (_normed(self.config, inner, self.attention_out_norm) if self.config.norms == "sandwich" else inner)
        inner = self.mlp(_normed(self.config, x, self.mlp_norm))
        return x + (_normed(self.config, inner, self.mlp_out_norm) if self.config.norms == "sandwich" else inner), cache

    def convolve(self, x: Float[Array, "B S D"], rows: Rows, cache: DecoderCache | None, layer: Int[Array, ""]):
        history = self.config.conv_width - 1
        if rows.valid is not None:
            x = jnp.where(rows.valid[..., None], x, 0)
        if cache is None:
            joined = jnp.pad(x, ((0, 0), (history, 0), (0, 0)))
        else:
            joined = jnp.concatenate([cache.recent[layer].astype(x.dtype), x], axis=1)
            recent = joined[:, -history:].astype(cache.recent.dtype)
            cache = cache._replace(recent=cache.recent.at[layer].set(recent))
        return layers.causal_convolution(joined, rows.segment_id, self.conv[...]), cache


class Decoder(nnx.Module):
    """The whole network up to the final norm."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        make = Maker(rngs, config.param_dtype)
        std = config.embed_std or (config.embed**-0.5 if config.tied else 0.5)
        self.embed = make.normal((config.vocab_size, config.embed), ("vocab", "embed"), std)
        self.blocks = Block(config, make._replace(stack=(config.layers,)))
        self.norm = _norm_scale(config, make, config.embed)
        if not config.tied:
            self.unembed = make.normal((config.embed, config.vocab_size), ("embed", "vocab"), config.embed**-0.5)

    def __call__(self, tokens: Int[Array, "B S"], rows: Rows, cache: DecoderCache | None):
        definition, stacked = nnx.split(self.blocks, graph=False)

        def block(carry, layer_and_params):
            layer, params = layer_and_params
            x, cache = carry
            x, cache = nnx.merge(definition, params)(x, rows, cache, layer)
            return (stay(x), cache), None

        x = self.embed[...][tokens].astype(self.config.dtype)
        if self.config.embed_scaled:
            x = x * jnp.asarray(self.config.embed**0.5, x.dtype)
        x = stay(x)
        order = jnp.arange(self.config.layers)
        # A cache is updated in place only while the scan stays a loop.
        unroll = min(self.config.unroll, self.config.layers) if cache is None else 1
        (x, cache), _ = jax.lax.scan(_remat(block, self.config.remat), (x, cache), (order, stacked), unroll=unroll)
        return _normed(self.config, x, self.norm), cache


def _norm_scale(config: DecoderConfig, make: Maker, size: int) -> nnx.Param:
    return make.constant((size,), (None,), 0.0 if config.norms == "sandwich" else 1.0)


def _normed(config: DecoderConfig, x: Float[Array, "*B D"], scale: nnx.Param) -> Float[Array, "*B D"]:
    return layers.rms_norm(x, scale[...], config.norm_eps, from_one=config.norms == "sandwich")


def _remat(block, remat: str):
    if remat == "none":
        return block
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(block, policy=policy, prevent_cse=False)  # inside a scan nothing can be merged away


def _cache_functions(config: DecoderConfig, definition: Any) -> Cache:
    def init_cache(batch: int, length: int, dtype: str | None = None) -> DecoderCache:
        """Room for `length` tokens in each of `batch` rows, in `dtype` (the activations' by default)."""
        kind = dtype or config.dtype
        slots = (config.layers, batch, length, config.kv_heads, config.head_dim)
        recent = (config.layers, batch, max(config.conv_width - 1, 0), config.embed)
        return DecoderCache(
            key=jnp.zeros(slots, kind),
            value=jnp.zeros(slots, kind),
            recent=jnp.zeros(recent, kind),
            valid=jnp.zeros((batch, length), bool),
            filled=jnp.zeros((), jnp.int32),
        )

    def extend(params: Params, cache: DecoderCache, tokens: Int[Array, "B S"], positions: Int[Array, "B S"]):
        """Hidden states of `tokens` given what the cache holds, and the cache with them; see `Cache.extend`."""
        valid = jax.lax.dynamic_update_slice(cache.valid, positions >= 0, (0, cache.filled))
        cache = cache._replace(valid=valid)
        hidden, cache = nnx.merge(definition, params)(
            tokens, cached_rows(config, cache.valid, cache.filled, positions), cache
        )
        return hidden, cache._replace(filled=cache.filled + tokens.shape[1])

    return Cache(init_cache, extend)


@functools.lru_cache(maxsize=64)  # the same configuration gives the same functions, so nothing is compiled twice
def make_student(config: DecoderConfig) -> Student:
    """The decoder of `config` as a Student. Hidden states come in `config.dtype`."""
    build = functools.partial(_build, config)
    definition, state = nnx.split(nnx.eval_shape(build, jax.random.key(0), graph=False), graph=False)
    axes: Axes = jax.tree.map(lambda p: p.get_metadata("logical_axes"), _nested(state), is_leaf=_is_param)

    @jax.jit
    def init(key: Key) -> Params:
        return nnx.to_pure_dict(nnx.state(build(key), graph=False))

    def hidden(params: Params, batch: TokenBatch) -> Float[Array, "B T D"]:
        return nnx.merge(definition, params)(batch["tokens"], packed_rows(config, batch), None)[0]

    def unembed(params: Params) -> Float[Array, "..."]:
        return (params["embed"] if config.tied else params["unembed"]).astype(config.dtype)

    return Student(
        init=init,
        hidden=hidden,
        unembed=unembed,
        axes=axes,
        vocab_size=config.vocab_size,
        soft_cap=config.soft_cap,
        unembed_layout="vd" if config.tied else "dv",
        cache=_cache_functions(config, definition),
        config=config,
    )


def _build(config: DecoderConfig, key: Key) -> Decoder:
    return Decoder(config, rngs=nnx.Rngs(key))


def _is_param(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _nested(state: Any) -> Any:
    """flax's State as nested dicts with its Variables as leaves."""
    return {k: v if _is_param(v) else _nested(v) for k, v in state.items()}
