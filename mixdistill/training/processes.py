"""Several processes, one answer: what only one of them may decide, and what each of them holds a part of."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def by_first[Tree](made: Tree | None, like: Tree) -> Tree:
    """What the first process has made, on all processes; `made` is None on the others. `like` has the same shapes."""
    if jax.process_count() == 1:
        assert made is not None
        return made
    return multihost_utils.broadcast_one_to_all(like if made is None else made)


def everywhere(well: bool) -> bool:
    """Whether it is so on all processes, which all have to ask."""
    if jax.process_count() == 1:
        return well
    return bool(np.all(multihost_utils.process_allgather(np.array([well]))))


def on_host(found: Any) -> Any:
    """The arrays of a tree as numpy arrays, whole, on every process."""
    if all(array.is_fully_addressable for array in jax.tree.leaves(found)):
        return jax.device_get(found)
    return multihost_utils.process_allgather(found, tiled=True)
