"""Is a train state whole? A checksum of every array, equal on every mesh, and whether its numbers are finite."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixdistill.optimizers import path_name
from mixdistill.training.state import TrainState

MIX = 0x9E3779B1  # odd


class Soundness(NamedTuple):
    """`checksums` by the path of an array in the state; `finite` of parameters and optimiser state."""

    checksums: dict[str, int]
    finite: bool


def soundness(state: TrainState | Mapping[str, Any]) -> Soundness:
    """Reads the arrays where they are; waits for them. `state`: also a part of one, as a dict.

    A checksum is sum((bits_i + 1) m_i) mod 2^32 over the elements, m_i odd and of the place i: the order of additions
    does not matter, so every mesh gives the same, and one element that changes by anything changes it.
    """
    sums, finite = jax.device_get(_program(_quick(state))(state))
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    return Soundness(dict(zip(paths, map(int, sums), strict=True)), bool(finite))


@functools.lru_cache
def _program(options: tuple[tuple[str, Any], ...]):
    return jax.jit(_measure, compiler_options=dict(options) or None)


def _quick(state: Any) -> tuple[tuple[str, Any], ...]:
    """It runs once a checkpoint: on a CPU optimising it costs more than it saves."""
    where = getattr(jax.tree.leaves(state)[0], "sharding", None)
    platform = next(iter(where.device_set)).platform if where else jax.default_backend()
    return (("xla_backend_optimization_level", 1),) if platform == "cpu" else ()


def _measure(state: Any) -> tuple[jax.Array, jax.Array]:
    learned = (state.params, state.opt_state) if isinstance(state, TrainState) else state
    numbers = [x for x in map(jnp.asarray, jax.tree.leaves(learned)) if jnp.issubdtype(x.dtype, jnp.inexact)]
    finite = functools.reduce(jnp.logical_and, [jnp.isfinite(x).all() for x in numbers], jnp.bool_(True))
    return jnp.stack([_checksum(x) for x in jax.tree.leaves(state)]), finite


def _checksum(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        bits = x.astype(jnp.uint32)
    else:
        size = np.dtype(x.dtype).itemsize
        bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32)).astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, length in enumerate(bits.shape):  # a flat index would not split over devices
        place = place * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    mixed = (place * jnp.uint32(MIX)) ^ (place >> 15)
    return ((bits + 1) * (mixed << 1 | 1)).sum(dtype=jnp.uint32)
