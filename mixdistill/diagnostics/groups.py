"""Groups of teachers that may be mixed: no pair in conflict, and as much of the target problems covered as possible.

A merge beats the best single teacher only where coverage is complementary and forms are compatible, so coverage decides
first, then the number of teachers, then the least conflict.
"""

import itertools
from collections.abc import Collection, Hashable, Mapping
from typing import Any, NamedTuple

import networkx as nx
import numpy as np

# Bits of continuation conflict. Read off one procedural world, where harmless pairs stay below .036 and harmful ones
# that decide a group lie above .071.
THRESHOLD = 0.05
# Coverages that differ by less count as equal, so that a larger group is not lost to a handful of odd problems.
RESOLUTION = 0.01


class Group(NamedTuple):
    """Teachers without a conflicting pair, to which no further teacher can be added."""

    teachers: tuple[str, ...]
    coverage: float  # share of the target problems whose kind the group has traces for
    conflict: float  # sum over its pairs, bits


def compatible_groups(
    teachers: tuple[str, ...],
    score: np.ndarray,
    kinds: Mapping[str, Collection[Hashable]],
    wanted: Mapping[Any, float],
    *,
    threshold: float = THRESHOLD,
) -> list[Group]:
    """All maximal groups, best first.

    `score` [K, K]: a pair above `threshold` conflicts, and so does one that could not be measured (NaN). `kinds`: of
    which kinds each teacher has traces; `wanted`: how many target problems are of each kind. A kind is whatever shows
    in a prompt, such as its length.
    """
    compatible = nx.Graph()
    compatible.add_nodes_from(range(len(teachers)))
    compatible.add_edges_from((i, j) for i, j in _pairs(range(len(teachers))) if score[i, j] <= threshold)
    groups = [_group(sorted(members), teachers, score, kinds, wanted) for members in nx.find_cliques(compatible)]
    return sorted(groups, key=lambda g: (-round(g.coverage / RESOLUTION), -len(g.teachers), g.conflict, g.teachers))


def coverage(kinds: Collection[Hashable], wanted: Mapping[Any, float]) -> float:
    """The share of the target problems that are of one of `kinds`; 1 where no problem is given."""
    total = sum(wanted.values())
    return sum(count for kind, count in wanted.items() if kind in kinds) / total if total else 1.0


def _group(members, teachers, score, kinds, wanted) -> Group:
    names = tuple(teachers[i] for i in members)
    together = set(itertools.chain.from_iterable(kinds[name] for name in names))
    return Group(names, coverage(together, wanted), float(sum(score[i, j] for i, j in _pairs(members))))


def _pairs(items):
    return itertools.combinations(items, 2)
