"""Nested dicts by path: ("blocks", "mlp", "up")."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

Path = tuple[str, ...]


def flat(tree: dict[str, Any], is_leaf: Callable[[Any], bool] | None = None) -> dict[Path, Any]:
    """{path: leaf} of nested dicts."""
    return {tuple(k.key for k in path): leaf for path, leaf in jax.tree.leaves_with_path(tree, is_leaf=is_leaf)}


def at(tree: Any, path: Path) -> Any:
    """What stands at `path` of nested dicts."""
    for name in path:
        tree = tree[name]
    return tree


def nest(flat: Mapping[Path, Any]) -> dict[str, Any]:
    """The reverse of `flat`."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        node = nested
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return nested
