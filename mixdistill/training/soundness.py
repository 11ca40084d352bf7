"""Is a train state whole? A checksum of every array, equal on every mesh, and whether its numbers are finite."""

import functools
from collections.abc import Mapping
from types import ModuleType
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
    if all(map(_is_on_host, jax.tree.leaves(state))):
        # numpy needs no program, and compiling one takes longer than all checksums of a small run.
        sums, finite = _measure(np, jax.tree.map(np.asarray, state))
    else:
        sums, finite = jax.device_get(_on_devices(jax.tree.map(jnp.asarray, state)))
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    return Soundness(dict(zip(paths, map(int, sums), strict=True)), bool(finite))


def _is_on_host(array: Any) -> bool:
    return not isinstance(array, jax.Array) or (
        array.is_fully_addressable and all(device.platform == "cpu" for device in array.devices())
    )


@jax.jit
def _on_devices(state: Any) -> tuple[jax.Array, jax.Array]:
    return _measure(jnp, state)


def _measure(xp: ModuleType, state: Any) -> tuple[Any, Any]:
    learned = (state.params, state.opt_state) if isinstance(state, TrainState) else state
    numbers = [x for x in jax.tree.leaves(learned) if jnp.issubdtype(x.dtype, jnp.inexact)]
    finite = functools.reduce(xp.logical_and, [xp.isfinite(x).all() for x in numbers], xp.bool_(True))
    return xp.stack([_checksum(xp, x) for x in jax.tree.leaves(state)]), finite


def _checksum(xp: ModuleType, x: Any) -> Any:
    if x.dtype == jnp.bool_:
        bits = x.astype(xp.uint32)
    else:
        bits = x.view({1: xp.uint8, 2: xp.uint16}.get(x.dtype.itemsize, xp.uint32)).astype(xp.uint32)
    place = xp.zeros(bits.shape, xp.uint32)
    for axis, length in enumerate(bits.shape):  # a flat index would not split over devices
        along = xp.arange(length, dtype=xp.uint32).reshape([-1 if a == axis else 1 for a in range(bits.ndim)])
        place = place * xp.uint32(length) + along
    mixed = (place * xp.uint32(MIX)) ^ (place >> xp.uint32(15))
    return ((bits + xp.uint32(1)) * (mixed << xp.uint32(1) | xp.uint32(1))).sum(dtype=xp.uint32)
