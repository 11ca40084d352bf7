"""Which program computes attention: XLA everywhere, cuDNN on GPUs where it keeps segments apart, splash on TPUs.

A student does not know on which machine it is traced. Whoever compiles for one says so with `attend`; without a word
it is XLA, the reference. All of them compute `layers.attention` under the mask of `rows.View`.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from mixdistill.mesh import Rules, sharding
from mixdistill.students import layers
from mixdistill.students.config import DecoderConfig
from mixdistill.students.rows import View

LANES = 128  # what splash attention's blocks and heads are multiples of
BLOCK = 512
HALF = (jnp.bfloat16, jnp.float16)


class How(NamedTuple):
    """`mesh` and `rules`: where tokens lie. XLA splits no kernel, and left alone it may split activations by width."""

    backend: Literal["xla", "cudnn", "splash"] = "xla"
    mesh: Mesh | None = None
    rules: Rules | None = None
    interpret: bool = False  # run the kernel on a CPU, for tests


_how: ContextVar[How | None] = ContextVar("attention", default=None)


@contextlib.contextmanager
def attend(how: How) -> Iterator[None]:
    """Everything that is traced inside computes attention like this, where its shapes allow."""
    token = _how.set(how)
    try:
        yield
    finally:
        _how.reset(token)


def choose(mesh: Mesh, rules: Rules) -> How:
    """By what the mesh's devices are. cuDNN is tried out once; a GPU that is only compiled for has XLA."""
    device = mesh.devices.flat[0]
    if device.platform == "tpu":
        return How("splash", mesh, rules)
    if device.platform in ("gpu", "cuda") and jax.default_backend() == "gpu" and keeps_segments_apart(cudnn):
        return How("cudnn", mesh, rules)
    return How("xla", mesh, rules)


def stay(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Hidden states, kept on the devices that have their tokens."""
    how = _how.get() or How()
    if how.mesh is None or how.rules is None or how.mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, sharding(how.mesh, how.rules, ("batch", "sequence", None)))


def attention(
    query: Float[Array, "B T H E"],
    key: Float[Array, "B T K E"],
    value: Float[Array, "B T K E"],
    seen: View,
    segment_id: Int[Array, "B T"],
    config: DecoderConfig,
    layer: Int[Array, ""],
) -> Float[Array, "B T H E"]:
    """Attention of whole rows, by the program in force."""
    how = _how.get() or How()
    if how.backend == "splash" and fits_splash(query.shape[1], query.shape[3], how):
        return _splash(query, key, value, segment_id, config, layer, how)
    if how.backend == "cudnn" and query.dtype in HALF:
        return cudnn(query, key, value, seen.mask, config.attention_scale)
    return layers.attention(query, key, value, seen.mask, config.attention_scale)


def cudnn(query, key, value, mask, scale=None):
    """As `layers.attention`, in bfloat16 on an NVIDIA GPU."""
    return jax.nn.dot_product_attention(query, key, value, mask=mask, scale=scale, implementation="cudnn")


@functools.lru_cache
def keeps_segments_apart(run: Callable[..., Array]) -> bool:
    """Whether `run` gives packed rows what it gives to each segment alone, forward and backward. A program that ignores
    the mask trains on mixed-up traces and says nothing, so one that cannot be run counts as one that does not."""
    length, cut = 128, 48
    keys = jax.random.split(jax.random.key(0), 3)
    given = [jax.random.normal(key, (1, length, 2, 64), jnp.bfloat16) for key in keys]
    segment_id = jnp.where(jnp.arange(length) < cut, 1, 2)[None]

    def total(given, segment_id):
        out = run(*given, layers.packed_mask(segment_id)).astype(jnp.float32)
        return jnp.sum(jnp.sin(out)), out

    try:
        results = []
        for part in (slice(0, length), slice(0, cut), slice(cut, length)):
            one = [x[:, part] for x in given]
            (_, out), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(one, segment_id[:, part])
            results.append([np.asarray(x, np.float32) for x in (out, *gradient)])
    except Exception:  # noqa: BLE001 - whatever a missing library raises
        return False
    packed, first, second = results
    return all(
        np.allclose(p, np.concatenate([a, b], 1), atol=0.05) for p, a, b in zip(packed, first, second, strict=True)
    )


def fits_splash(length: int, head_dim: int, how: How) -> bool:
    """Whether splash attention has kernels for rows of `length` tokens."""
    parts = 1
    if how.mesh is not None and how.rules is not None:
        parts = math.prod(how.mesh.shape[axis] for axis in how.rules.mesh_axes("sequence"))
    return length % (LANES * parts) == 0 and head_dim % LANES == 0


def _splash(query, key, value, segment_id, config: DecoderConfig, layer, how: How):
    """Splash attention (block-sparse flash attention, arXiv:2205.14135) on every device's rows and heads; keys and
    values of a row that is split over devices are gathered."""
    scale = config.attention_scale or config.head_dim**-0.5
    query = (query * jnp.asarray(scale, query.dtype)).swapaxes(1, 2)
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    run = functools.partial(_on_mesh, how, query.shape[1], query.shape[2])
    window = config.window
    if window is None or not window.full_layers:
        out = run(None if window is None else window.tokens)(query, key, value, segment_id)
    else:
        full = jnp.isin(layer, jnp.asarray(window.full_layers))
        out = jax.lax.cond(full, run(None), run(window.tokens), query, key, value, segment_id)
    return out.swapaxes(1, 2)


def _on_mesh(how: How, heads: int, length: int, window: int | None) -> Callable[..., Array]:
    if how.mesh is None or how.rules is None:
        return functools.partial(_rows, _kernel(heads, length, window, 1, 1, how.interpret))
    mesh, rules = how.mesh, how.rules
    rows, tokens, split = (rules.mesh_axes(name) or None for name in ("batch", "sequence", "heads"))
    of_heads, of_rows = (math.prod(mesh.shape[axis] for axis in axes or ()) for axes in (split, tokens))
    kernel = _kernel(heads, length, window, of_heads, of_rows, how.interpret)
    spec = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(split, tokens)))
    whole = PartitionSpec(rows, split, None, None)
    mine = PartitionSpec(rows, split, tokens, None)

    def run(query, key, value, segment_id):
        local: Callable[..., Array] = jax.shard_map(
            _rows,
            mesh=mesh,
            in_specs=(spec, mine, whole, whole, PartitionSpec(rows, tokens), PartitionSpec(rows)),
            out_specs=mine,
            check_vma=False,
        )
        return local(kernel, query, key, value, segment_id, segment_id)

    return run


def _rows(kernel: Any, query, key, value, q_ids, kv_ids=None):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # a second of loading, for TPUs alone

    ids = splash.SegmentIds(q_ids, q_ids if kv_ids is None else kv_ids)
    return jax.vmap(kernel)(query, key, value, ids)


def _kernel(heads: int, length: int, window: int | None, head_shards: int, row_shards: int, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    shape = (length, length)
    one = splash.CausalMask(shape) if window is None else splash.LocalMask(shape, (window - 1, 0), 0)
    block = math.gcd(length // row_shards, BLOCK)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    return splash.make_splash_mha(
        splash.MultiHeadMask([one] * heads),
        block_sizes=splash.BlockSizes(**dict.fromkeys((*names, "block_q_dq", "block_kv_dq"), block)),
        head_shards=head_shards,
        q_seq_shards=row_shards,
        interpret=interpret,
    )
