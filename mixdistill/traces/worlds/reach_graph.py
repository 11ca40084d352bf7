"""The graphs of REACH and the question asked of them."""

import itertools
import random
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mixdistill.errors import UserError
from mixdistill.traces.worlds.walk import NODES
from mixdistill.traces.worlds.world import Split, joined

CANDIDATES = 4
EXTRA = {"plain": 2, "bushy": 5}  # nodes off the way, below the source

Links = dict[str, list[str]]


class Question(NamedTuple):
    """The graph, both ways round, in the order of the prompt; and what is asked."""

    ahead: Links
    back: Links
    source: str
    candidates: tuple[str, ...]
    answer: str
    distance: int


def read(prompt: str) -> Question:
    """Graph and question. Raises `UserError` where there is none, or not exactly one candidate can be reached."""
    words = prompt.split()
    cut = words.index("which") if "which" in words else len(words)
    edges, asked = [*itertools.batched(words[:cut], 4)], words[cut:]
    source, candidates = asked[-2:-1], tuple(asked[2:-3])
    fits = asked == ["which", "of", *candidates, "from", *source, ":"] and all(
        len(edge) == 4 and (edge[1], edge[3]) == ("to", ".") for edge in edges
    )
    ahead, back = _links([(u, v) for u, _, v, _ in edges] if fits else [])
    found = distances(ahead, source[0]) if fits else {}
    reached = [node for node in candidates if node in found]
    if len(reached) != 1 or found[reached[0]] < 1:
        form = "'A to B . .. which of P Q .. from A :' with one of P Q .. within reach"
        raise UserError(f"not a problem of world reach: {prompt[:80]!r}; it is {form}")
    return Question(ahead, back, source[0], candidates, reached[0], found[reached[0]])


def _links(edges: Sequence[tuple[str, str]]) -> tuple[Links, Links]:
    ahead: Links = {node: [] for edge in edges for node in edge}
    back: Links = {node: [] for node in ahead}
    for u, v in edges:
        ahead[u].append(v)
        back[v].append(u)
    return ahead, back


def distances(links: Links, start: str) -> dict[str, int]:
    found = {start: 0}
    waiting = deque([start])
    while waiting:
        node = waiting.popleft()
        for other in links.get(node, ()):
            if other not in found:
                found[other] = found[node] + 1
                waiting.append(other)
    return found


def draw(rng: random.Random, split: Split, size: int) -> str:
    """The answer lies `size` edges from the source."""
    extra = EXTRA[split.family]
    count = 2 * size + 4 + extra
    if size < 1 or count > len(NODES):
        largest = (len(NODES) - 4 - extra) // 2
        raise UserError(f"size {size} of world reach: {len(NODES)} nodes have room for ways of 1..{largest} edges")
    nodes = rng.sample(NODES, count)
    true, false = nodes[: size + 1 + extra], nodes[size + 1 + extra :]
    edges = [*_tree(rng, true, size), *_tree(rng, false, size), (rng.choice(false), rng.choice(true[1:]))]
    rng.shuffle(edges)
    candidates = [true[size], *rng.sample(false[1:], CANDIDATES - 1)]
    rng.shuffle(candidates)
    return joined(*(f"{u} to {v} ." for u, v in edges), "which of", *candidates, "from", true[0], ": ")


def _tree(rng: random.Random, nodes: Sequence[str], size: int) -> Iterator[tuple[str, str]]:
    """A way of `size` edges from the first node; the others hang on it or on each other, but not on its end."""
    yield from itertools.pairwise(nodes[: size + 1])
    for i in range(size + 1, len(nodes)):
        yield rng.choice([node for k, node in enumerate(nodes[:i]) if k != size]), nodes[i]


def shortest_way(question: Question) -> list[str]:
    """A shortest way from the source to the answer."""
    found = distances(question.ahead, question.source)
    way = [question.answer]
    while way[0] != question.source:
        way.insert(0, next(node for node in question.back[way[0]] if found.get(node) == found[way[0]] - 1))
    return way
