"""Is a train state whole? A checksum of every array, equal on every mesh, and whether its numbers are finite."""

import functools
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixdistill.optimizers import path_name
from mixdistill.training.state import TrainState

MIX = 0x9E3779B1  # odd
BLOCK = 2**16  # elements


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
        sums, finite = _on_host(jax.tree.map(np.asarray, state))
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
    finite = functools.reduce(jnp.logical_and, [jnp.isfinite(x).all() for x in _learned(state)], jnp.bool_(True))
    return jnp.stack([_checksum(jnp, x, _places(x.shape)) for x in jax.tree.leaves(state)]), finite


def _on_host(state: Any) -> tuple[list[int], bool]:
    """Block by block: what is computed on the way takes several times the room of what it is computed from."""
    finite = all(np.isfinite(part).all() for x in _learned(state) for _, part in _blocks(x))
    return [_sum_of_blocks(x) for x in jax.tree.leaves(state)], finite


def _learned(state: Any) -> list[Any]:
    learned = (state.params, state.opt_state) if isinstance(state, TrainState) else state
    return [x for x in jax.tree.leaves(learned) if jnp.issubdtype(x.dtype, jnp.inexact)]


def _blocks(x: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(places, elements)."""
    flat = np.ascontiguousarray(x).reshape(-1)
    for start in range(0, flat.size, BLOCK):
        part = flat[start : start + BLOCK]
        yield np.arange(start, start + part.size, dtype=np.int64).astype(np.uint32), part


def _sum_of_blocks(x: np.ndarray) -> int:
    return sum(int(_checksum(np, part, places)) for places, part in _blocks(x)) % 2**32


def _places(shape: tuple[int, ...]) -> jax.Array:
    place = jnp.zeros(shape, jnp.uint32)
    for axis, length in enumerate(shape):  # a flat index would not split over devices
        along = jnp.arange(length, dtype=jnp.uint32).reshape([-1 if a == axis else 1 for a in range(len(shape))])
        place = place * jnp.uint32(length) + along
    return place


def _checksum(xp: ModuleType, x: Any, place: Any) -> Any:
    if x.dtype == jnp.bool_:
        bits = x.astype(xp.uint32)
    else:
        bits = x.view({1: xp.uint8, 2: xp.uint16}.get(x.dtype.itemsize, xp.uint32)).astype(xp.uint32)
    mixed = (place * xp.uint32(MIX)) ^ (place >> xp.uint32(15))
    return ((bits + xp.uint32(1)) * (mixed << xp.uint32(1) | xp.uint32(1))).sum(dtype=xp.uint32)
