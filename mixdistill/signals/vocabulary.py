"""The vocabulary pass: every per-token statistic of the output distribution, without ever holding `[N, V]`.

From final hidden states and the unembedding it gives the log-sum-exp and the logits at some ids, which are
differentiable, and statistics, which are not. Losses are plain JAX on these, so the gradient of the logits is always
`g_lse * softmax + scatter(g_logit)`, recomputed tile by tile. **A token is dead iff its cotangents are exactly zero**:
whatever gate or mask was applied downstream, dead tokens are left out of the backward pass.
"""

import functools
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Num

from mixdistill.errors import UserError, unknown
from mixdistill.signals import vocabulary_tiles as tiled
from mixdistill.signals.vocabulary_tiles import Cotangents, Running, Spec, Tiles

Backward = Literal["tiles", "buckets", "dense"]
BACKWARDS = ("tiles", "buckets", "dense")

# Up to this many bytes of float32 logits the dense backward, which keeps them, is the fastest on a CPU.
DENSE_BYTES = 2**28


class VocabularyStats(NamedTuple):
    """Float32 statistics per token; `...` are the leading dimensions of `hidden`. Logarithms are natural (nats)."""

    logit: Float[Array, "..."]  # [..., m] at the ids; differentiable
    lse: Float[Array, "..."]  # log-sum-exp of all logits; differentiable
    entropy: Float[Array, "..."]  # nats
    confidence: Float[Array, "..."]  # mean log-probability of the top_k most likely tokens; DeepConf's C is minus this
    rank: Int[Array, "..."]  # of the first id: 1 is the most likely; saturates at max_rank
    top1: Bool[Array, "..."]  # the first id is the most likely
    tail_mass: Float[Array, "..."]  # probability outside the top_k
    max_logit: Float[Array, "..."]


# The signals that losses and gates read by name, and how each comes from the pass. What nobody reads is not computed:
# under jit XLA removes it from the tiles.
NAMES: Mapping[str, Callable[[VocabularyStats], Array]] = types.MappingProxyType(
    {
        "label_logprob": lambda s: s.logit[..., 0] - s.lse,
        "label_logit": lambda s: s.logit[..., 0],
        "label_rank": lambda s: s.rank,
        "entropy": lambda s: s.entropy,
        "confidence": lambda s: s.confidence,
        "top1": lambda s: s.top1,
        "top1_logprob": lambda s: s.max_logit - lax.stop_gradient(s.lse),
        "tail_mass": lambda s: s.tail_mass,
        "max_logit": lambda s: s.max_logit,
        "lse": lambda s: s.lse,
        "topk_logprob": lambda s: s.logit[..., 1:] - s.lse[..., None],
    }
)


def vocabulary_pass(
    hidden: Num[Array, "..."],
    unembed: Num[Array, "a b"],
    ids: Int[Array, "..."],
    *,
    valid: Bool[Array, "..."] | None = None,
    top_k: int = 20,
    max_rank: int = 100,
    soft_cap: float | None = None,
    temperature: float = 1.0,
    layout: Literal["dv", "vd"] = "dv",
    num_valid_vocab: int | None = None,
    tiles: Tiles | None = None,
    backward: Backward | None = None,
    mesh: Mesh | None = None,
    token_axes: tuple[str, ...] = (),
    vocab_axis: str | None = None,
    platform: str | None = None,
) -> VocabularyStats:
    """Statistics of `hidden @ unembed` for every token.

    Args:
      hidden: `[..., D]`, bfloat16 or float32.
      unembed: `[D, V]`, or `[V, D]` with `layout="vd"` (tied embeddings); never transposed by copy.
      ids: `[..., m]` integers in [0, V). Column 0 is the target; the others may be a teacher's stored top ids.
      valid: tokens masked beforehand (prompt, padding) skip the forward too; their statistics are those of nothing.
      num_valid_vocab: columns from here on only pad the vocabulary and count as impossible.
      backward: None picks by platform and size, see `choose_backward`.
      mesh, token_axes, vocab_axis: leading dimension of `hidden` split over `token_axes`, the vocabulary over
        `vocab_axis`; the unembedding is then never gathered over the vocabulary.

    Raises `UserError` for shapes, ids' dtype, sizes or names that do not fit, before anything is compiled.
    """
    _check(hidden, unembed, ids, valid, layout, top_k, max_rank, temperature, soft_cap, num_valid_vocab)
    num_vocab = unembed.shape[1] if layout == "dv" else unembed.shape[0]
    _check_mesh(mesh, token_axes, vocab_axis, hidden.shape[0], num_vocab)
    platform = platform or jax.default_backend()
    num_tokens = math.prod(hidden.shape[:-1])
    shards = math.prod(mesh.shape[axis] for axis in token_axes) if mesh else 1
    if backward is None:
        backward, _ = choose_backward(platform, num_tokens, num_vocab, sharded=mesh is not None)
    elif backward not in BACKWARDS:
        raise unknown("backward", str(backward), BACKWARDS)
    if backward == "dense" and mesh is not None:
        raise UserError("backward='dense' keeps all logits on one device; with a mesh use 'tiles' or 'buckets'")
    spec = Spec(
        top_k,
        max_rank,
        soft_cap,
        float(temperature),
        layout,
        num_valid_vocab,
        tiles or default_tiles(platform, num_tokens // shards, num_vocab, hidden.shape[-1]),
        platform == "cpu",
    )
    layout_of_mesh = None if mesh is None else _Sharding(mesh, tuple(token_axes), vocab_axis)
    lse, logit, rest = _pass(hidden, unembed, ids, valid, spec, backward, layout_of_mesh)
    rest = lax.stop_gradient(rest)
    return VocabularyStats(logit, lse, *rest)


def choose_backward(platform: str, num_tokens: int, num_vocab: int, *, sharded: bool = False) -> tuple[Backward, str]:
    """The backward for a platform and size, and why, in words for `mixdistill explain`."""
    size = 4 * num_tokens * num_vocab
    if not sharded and size <= DENSE_BYTES and platform == "cpu":
        return "dense", f"all logits are {size / 2**20:.0f} MiB: keeping them is faster than recomputing them"
    if platform in ("gpu", "cuda", "rocm"):
        return "buckets", "full-size matrix products over eight static prefixes of the live tokens"
    return "tiles", "live tokens in tiles, recomputed: the time follows the share of tokens that are kept"


def default_tiles(platform: str, num_tokens: int, num_vocab: int, embed: int) -> Tiles:
    """Measured defaults. Backward token tiles are at most an eighth of the tokens, or the saving is rounded away."""
    del embed
    eighth = max(-(-num_tokens // 8), 1)
    if platform == "cpu":
        return Tiles(256, None, min(256, max(eighth, 32)), 4096 if num_vocab < 2**16 else 8192)
    if platform == "tpu":
        return Tiles(1024, 8192, min(1024, max(eighth, 128)), 8192)
    tokens = max(128, min(4096, 3 * 2**29 // (4 * num_vocab)))  # a tile of float32 logits is at most 1.5 GiB
    return Tiles(tokens, None, min(2048, max(eighth, 128)), 16384)


class _Sharding(NamedTuple):
    mesh: Mesh
    token_axes: tuple[str, ...]
    vocab_axis: str | None

    def tokens(self, ndim: int) -> P:
        return P(self.token_axes or None, *(None,) * (ndim - 1))

    def unembed(self, spec: Spec) -> P:
        return P(None, self.vocab_axis) if spec.layout == "dv" else P(self.vocab_axis, None)

    def first(self, unembed: Array, spec: Spec) -> Int[Array, ""] | int:
        """The first column that this device holds."""
        if self.vocab_axis is None:
            return 0
        return lax.axis_index(self.vocab_axis) * tiled.width(unembed, spec)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _pass(hidden, unembed, ids, valid, spec: Spec, backward: Backward, sharding: _Sharding | None):
    """(lse, logit, statistics). The statistics get no gradient: the backward ignores their cotangents."""
    return _forward(hidden, unembed, ids, valid, spec, backward, sharding)[0]


def _forward(hidden, unembed, ids, valid, spec: Spec, backward: Backward, sharding: _Sharding | None):
    if sharding is None:
        outputs, z = _local_forward(hidden, unembed, ids, valid, spec, backward, None)
        return outputs, (hidden, unembed, ids, outputs[0], z)
    specs = [sharding.tokens(hidden.ndim), sharding.unembed(spec), sharding.tokens(ids.ndim)]
    masks = () if valid is None else (valid,)
    run = jax.shard_map(
        lambda h, w, i, *v: _local_forward(h, w, i, v[0] if v else None, spec, backward, sharding)[0],
        mesh=sharding.mesh,
        in_specs=(*specs, *(sharding.tokens(v.ndim) for v in masks)),
        out_specs=P(sharding.token_axes or None),
        check_vma=False,
    )
    outputs = run(hidden, unembed, ids, *masks)
    return outputs, (hidden, unembed, ids, outputs[0], None)


def _local_forward(hidden, unembed, ids, valid, spec: Spec, backward: Backward, sharding: _Sharding | None):
    """One device's tokens and columns, merged over the vocabulary axis."""
    lead = hidden.shape[:-1]
    h, i = hidden.reshape(-1, hidden.shape[-1]), ids.reshape(-1, ids.shape[-1]).astype(jnp.int32)
    v = None if valid is None else valid.reshape(-1)
    split = sharding is not None and sharding.vocab_axis is not None
    first, z = sharding.first(unembed, spec) if sharding is not None else 0, None
    if backward == "dense":
        z = tiled.logits(h, unembed, 0, spec)
        running = tiled.fold(tiled.start_running(len(h), i.shape[1], spec), z, i, 0, None, spec)
        running = running if v is None else _only(running, v, i.shape[1], spec)
    else:
        target = None
        if split or spec.tiles.forward_vocab is not None:
            target = tiled.gather_logit(h, unembed, i[:, 0], spec, first)
            target = lax.psum(target, sharding.vocab_axis) if split else target
        running = tiled.forward(h, unembed, i, v, target, spec, first)
    if split:
        running = _merge(running, sharding.vocab_axis, spec)
    outputs = _finish(running, spec)
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), outputs), z


def _only(running: Running, valid, num_ids: int, spec: Spec) -> Running:
    nothing = tiled.start_running(len(valid), num_ids, spec)
    return jax.tree.map(lambda x, o: jnp.where(valid.reshape(-1, *(1,) * (x.ndim - 1)), x, o), running, nothing)


def _merge(running: Running, axis: str, spec: Spec) -> Running:
    """Statistics of all columns from those of each device's columns."""
    peak = lax.pmax(running.max, axis)
    shift = running.max - peak
    scale = jnp.exp(shift)
    top = lax.all_gather(running.top, axis, axis=1, tiled=True)
    return Running(
        peak,
        lax.psum(scale * running.total, axis),
        lax.psum(scale * (running.moment + running.total * shift), axis),
        lax.psum(running.above, axis),
        lax.top_k(top, spec.top_k)[0] if spec.top_k else top,
        lax.psum(running.logit, axis),
    )


def _finish(running: Running, spec: Spec):
    """(lse, logit, (entropy, confidence, rank, top1, tail mass, max logit))."""
    seen = running.total > 0
    total = jnp.where(seen, running.total, 1.0)
    lse = jnp.where(seen, running.max, 0.0) + jnp.log(total)
    # The shifted form: lse - sum(p * z) would cancel digits where logits are large.
    entropy = jnp.log(total) - running.moment / total
    top = jnp.where(seen[:, None], running.top - lse[:, None], 0.0)
    rank = jnp.minimum(running.above + 1, spec.max_rank)
    tail = jnp.where(seen, 1.0 - jnp.exp(top).sum(1), 0.0)
    confidence = top.mean(1) if spec.top_k else jnp.zeros_like(lse)
    return lse, running.logit, (entropy, confidence, rank, running.above == 0, tail, jnp.where(seen, running.max, 0.0))


def _backward(spec: Spec, backward: Backward, sharding: _Sharding | None, residuals, cotangents):
    hidden, unembed, ids, lse, z = residuals
    g_lse, g_logit, _ = cotangents
    if sharding is None:
        dh, dw = _local_backward(hidden, unembed, ids, lse, g_lse, g_logit, z, spec, backward, None)
    else:
        token = sharding.tokens
        run = jax.shard_map(
            lambda h, w, i, s, gs, gl: _local_backward(h, w, i, s, gs, gl, None, spec, backward, sharding),
            mesh=sharding.mesh,
            in_specs=(
                token(hidden.ndim),
                sharding.unembed(spec),
                token(ids.ndim),
                token(lse.ndim),
                token(lse.ndim),
                token(ids.ndim),
            ),
            out_specs=(token(hidden.ndim), sharding.unembed(spec)),
            check_vma=False,
        )
        dh, dw = run(hidden, unembed, ids, lse, g_lse, g_logit)
    return dh.astype(hidden.dtype), dw.astype(unembed.dtype), None, None


def _local_backward(hidden, unembed, ids, lse, g_lse, g_logit, z, spec, backward, sharding: _Sharding | None):
    """Gradients of one device's part, added over the axes that split the other operand."""
    shape = hidden.shape
    h, i = hidden.reshape(-1, shape[-1]), ids.reshape(-1, ids.shape[-1]).astype(jnp.int32)
    g = Cotangents(g_lse.reshape(-1), g_logit.reshape(-1, ids.shape[-1]))
    if backward == "dense":
        dh, dw = tiled.backward_dense(h, unembed, i, lse.reshape(-1), z, g, spec)
    else:
        run = tiled.backward_tiles if backward == "tiles" else tiled.backward_buckets
        first = sharding.first(unembed, spec) if sharding is not None else 0
        dh, dw = run(h, unembed, i, lse.reshape(-1), g, spec, first)
    # No collective stands inside the loops above: each device has its own number of live tokens.
    if sharding is not None and sharding.vocab_axis is not None:
        dh = lax.psum(dh, sharding.vocab_axis)
    if sharding is not None and sharding.token_axes:
        dw = lax.psum(dw, sharding.token_axes)
    return dh.reshape(shape), dw


_pass.defvjp(_forward, _backward)


def _check(hidden, unembed, ids, valid, layout, top_k, max_rank, temperature, soft_cap, num_valid_vocab) -> None:
    if layout not in ("dv", "vd"):
        raise unknown("layout", str(layout), ("dv", "vd"))
    if hidden.ndim < 2 or unembed.ndim != 2:
        raise UserError(f"hidden is [..., D] and unembed has two dimensions; given {hidden.shape} and {unembed.shape}")
    embed, num_vocab = unembed.shape if layout == "dv" else unembed.shape[::-1]
    if hidden.shape[-1] != embed:
        raise UserError(f"hidden has width {hidden.shape[-1]}, unembed (layout {layout!r}) has {embed}")
    for name, x in (("hidden", hidden), ("unembed", unembed)):
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            raise UserError(f"{name} is {x.dtype}; the pass takes float32 and bfloat16")
    if ids.shape[:-1] != hidden.shape[:-1] or ids.ndim != hidden.ndim or ids.shape[-1] < 1:
        raise UserError(
            f"ids are [..., m] with the leading dimensions of hidden {hidden.shape[:-1]}; given {ids.shape}"
        )
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise UserError(f"ids are {ids.dtype}; they are integers")
    if valid is not None and (valid.shape != hidden.shape[:-1] or valid.dtype != jnp.bool_):
        raise UserError(f"valid is bool {hidden.shape[:-1]}; given {valid.dtype} {valid.shape}")
    if not 0 <= top_k <= num_vocab:
        raise UserError(f"top_k is {top_k}; it is between 0 and the vocabulary's {num_vocab}")
    if max_rank < 1:
        raise UserError(f"max_rank is {max_rank}; it is at least 1")
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}; it is positive")
    if soft_cap is not None and not soft_cap > 0:
        raise UserError(f"soft_cap is {soft_cap}; it is positive, or None for no cap")
    if num_valid_vocab is not None and not max(top_k, 1) <= num_valid_vocab <= num_vocab:
        raise UserError(f"num_valid_vocab is {num_valid_vocab}; it is between {max(top_k, 1)} and {num_vocab}")


def _check_mesh(mesh: Mesh | None, token_axes, vocab_axis: str | None, rows: int, num_vocab: int) -> None:
    axes: tuple[Any, ...] = (*token_axes, *((vocab_axis,) if vocab_axis else ()))
    if mesh is None:
        if axes:
            raise UserError(f"token_axes and vocab_axis name {', '.join(axes)}, but no mesh is given")
        return
    for axis in axes:
        if axis not in mesh.shape:
            raise unknown("mesh axis", axis, mesh.shape)
    if len(set(axes)) != len(axes):
        raise UserError(f"a mesh axis splits one thing only; given {', '.join(axes)}")
    shards = math.prod(mesh.shape[axis] for axis in token_axes)
    if rows % shards:
        raise UserError(f"token_axes split {rows} rows into {shards}; {shards} has to divide the rows")
    if vocab_axis and num_vocab % mesh.shape[vocab_axis]:
        raise UserError(
            f"vocab_axis {vocab_axis!r} splits {num_vocab} columns into {mesh.shape[vocab_axis]}; pad the vocabulary to a "
            f"multiple and give num_valid_vocab={num_vocab}"
        )
