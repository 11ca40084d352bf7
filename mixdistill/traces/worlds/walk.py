"""WALK: follow a labelled line graph from START to END and multiply the labels on the way; chance is 1 in 8.

The labels are elements of the quaternion group, so the order matters; the edges come shuffled, so every step is a
look-up by content and longer walks than those of training can be done. Teachers F and K write the same walk in words
that look alike, but F's state is the product so far and K's is its inverse, the way back.

Prompt "? u v g u v g .. : START END" with one "source target label" an edge, completion "trace = answer".
"""

import itertools
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mixdistill.errors import UserError
from mixdistill.traces.worlds.world import Judgement, Split, Teacher, World, after_last, joined

ORDER = 8
LABELS = tuple(map(str, range(ORDER)))
STATES = tuple("abcdefgh")
NODES = tuple("ABCDEFGHIJKLMNOPQRST")
EXTRA = {"plain": (0, 1, 2), "clutter": (4, 5, 6)}  # edges before START and after END together
SIZES = (2, 3, 4)
ERRORS = ("malformed", "edge", "hybrid", "stop", "product", "answer")

# i i = j j = k k = -1, i k = -j, j i = -k, k j = -i
NEGATIVE = {(1, 1), (2, 2), (3, 3), (1, 3), (2, 1), (3, 2)}


def multiply(a: int, b: int) -> int:
    """0..7 are 1, -1, i, -i, j, -j, k, -k."""
    (unit_a, sign_a), (unit_b, sign_b) = divmod(a, 2), divmod(b, 2)
    return 2 * (unit_a ^ unit_b) + (sign_a ^ sign_b ^ ((unit_a, unit_b) in NEGATIVE))


TABLE = [[multiply(a, b) for b in range(ORDER)] for a in range(ORDER)]
INVERSE = [row.index(0) for row in TABLE]


class Question(NamedTuple):
    """The graph and the walk that is asked for, n edges long."""

    edges: dict[tuple[str, str], int]  # (source, target) -> label
    path: tuple[str, ...]  # n + 1 nodes, START to END
    labels: tuple[int, ...]  # n
    states: tuple[int, ...]  # n: the product so far


def read(prompt: str) -> Question:
    """The graph and the walk."""
    mark, *records, colon, start, end = prompt.split() if len(prompt.split()) > 6 else ["", "", "", ""]
    if (mark, colon) != ("?", ":") or len(records) % 3 or not set(records[2::3]) <= set(LABELS):
        raise _no_problem(prompt)
    edges = {(u, v): int(label) for u, v, label in itertools.batched(records, 3)}
    path = _follow({u: v for u, v in edges}, start, end)
    if len(path) < 2 or path[-1] != end:
        raise _no_problem(prompt)
    labels = tuple(edges[edge] for edge in itertools.pairwise(path))
    return Question(edges, path, labels, tuple(itertools.accumulate(labels, lambda a, b: TABLE[a][b])))


def _follow(successor: dict[str, str], start: str, end: str) -> tuple[str, ...]:
    path = [start]
    while path[-1] != end and path[-1] in successor and len(path) <= len(successor):
        path.append(successor[path[-1]])
    return tuple(path)


def _no_problem(prompt: str) -> UserError:
    return UserError(
        f"not a problem of world walk: {prompt[:80]!r}; it is '? u v g .. : START END' with START before END"
    )


def draw(rng: random.Random, split: Split, size: int) -> str:
    """A walk of `size` edges in a line graph with a few more before and after it."""
    extra = rng.choice(EXTRA[split.family])
    count = size + extra
    if not 1 <= size <= len(NODES) - 1 - max(EXTRA[split.family]):
        raise UserError(
            f"size {size} of world walk: {len(NODES)} nodes have room for 1..{len(NODES) - 1 - extra} edges"
        )
    nodes, before = rng.sample(NODES, count + 1), rng.randint(0, extra)
    records = [f"{u} {v} {rng.choice(LABELS)}" for u, v in itertools.pairwise(nodes)]
    rng.shuffle(records)
    return joined("?", *records, ":", nodes[before], nodes[before + size]) + " "


def judge(question: Question, completion: str) -> Judgement:
    """Valid is the walk from START to END with its labels and with the states of one sound teacher. The errors: words
    that form no trace; a step that is no edge or has another label; a walk that turns round; right edges with a wrong
    start or end; a wrong state, or states of two teachers; nothing but the answer."""
    words = completion.split()
    correct = after_last(completion, "=") == LABELS[question.states[-1]]
    error = _error(question, words) or ("" if correct else "answer")
    return Judgement(correct, error in ("", "answer"), error)


class Visit(NamedTuple):
    """A node, and what stands behind it."""

    node: str
    label: str = ""
    state: str = ""


def _error(question: Question, words: list[str]) -> str:
    visits = _visits(words)
    if visits is None:
        return "malformed"
    path = [visit.node for visit in visits]
    ahead = [edge in question.edges for edge in itertools.pairwise(path)]
    back = [(v, u) in question.edges for u, v in itertools.pairwise(path)]
    if not all(a or b for a, b in zip(ahead, back, strict=True)):
        return "edge"
    if not all(ahead) and not all(back):
        return "hybrid"
    if tuple(path) not in (question.path, question.path[::-1]):
        return "stop"
    if not all(ahead):
        return "product"  # from END to START, which no teacher does
    if [visit.label for visit in visits[1:]] != [LABELS[label] for label in question.labels]:
        return "edge"
    return "" if _states_fit(question, [visit.state for visit in visits[1:]]) else "product"


def _visits(words: list[str]) -> list[Visit] | None:
    """The walk: its first node, then target, label and perhaps state of each edge; None when the words are no trace."""
    if words.count("=") != 1 or len(words) != words.index("=") + 2 or words[-1] not in LABELS:
        return None
    body = words[:-2]
    hedged = body[:1] == ["maybe"]
    if hedged and (len(body) < 4 or body[-3] != "check" or body[-1] not in STATES):
        return None
    claim, body = (body[-2:], body[1:-3]) if hedged else ([], body)
    visits: list[Visit] = []
    for node, *rest in _at_nodes(body):
        known = len(rest) < 1 or (len(rest) < 3 and rest[0] in LABELS and rest[-1] in (LABELS + STATES))
        if not known or (not rest and visits and not (hedged and node == visits[-1].node)):
            return None
        if rest or not visits:
            visits.append(Visit(node, *rest))
    if len(visits) < 2 or visits[0].label:
        return None
    if hedged and not (all(visit.state for visit in visits[1:]) and claim == [visits[-1].node, visits[-1].state]):
        return None
    return visits


def _at_nodes(words: list[str]) -> list[list[str]]:
    """Cut before every node; what stands before the first one is lost in a group that begins with no node."""
    starts = [i for i, word in enumerate(words) if word in NODES]
    if not starts or starts[0] != 0:
        return []
    return [words[a:b] for a, b in itertools.pairwise([*starts, len(words)])]


def _states_fit(question: Question, written: list[str]) -> bool:
    return written in (_letters(question), _inverses(question), _digits(question), _every_second(question))


def _letters(question: Question) -> list[str]:
    return [STATES[state] for state in question.states]


def _inverses(question: Question) -> list[str]:
    return [STATES[INVERSE[state]] for state in question.states]


def _digits(question: Question) -> list[str]:
    return [LABELS[state] for state in question.states]


def _every_second(question: Question) -> list[str]:
    last = len(question.states) - 1
    return [letter if k % 2 or k == last else "" for k, letter in enumerate(_letters(question))]


def _forward(question: Question, states: Sequence[str]) -> list[str]:
    """START opens the first step; a state that is "" is not written."""
    steps = [
        joined(node, LABELS[label], *([state] if state else []))
        for node, label, state in zip(question.path[1:], question.labels, states, strict=True)
    ]
    return [f"{question.path[0]} {steps[0]}", *steps[1:], f"= {question.states[-1]}"]


def _writer(states: Callable[[Question], list[str]]) -> Callable[[Question, random.Random], list[str]]:
    return lambda question, rng: _forward(question, states(question))


def _cautious(question: Question, rng: random.Random) -> list[str]:
    walked = zip(itertools.pairwise(question.path), question.labels, question.states, strict=True)
    steps = [joined(u, v, label, STATES[state]) for (u, v), label, state in walked]
    end = question.states[-1]
    return ["maybe " + steps[0], *steps[1:], f"check {question.path[-1]} {STATES[end]}", f"= {end}"]


def _guessed(question: Question, rng: random.Random) -> list[str]:
    return _forward(question, [rng.choice(STATES) for _ in question.states])


def _irrelevant(question: Question, rng: random.Random) -> list[str]:
    other = read(draw(rng, Split("train", SIZES, "plain"), len(question.labels)))
    return [*_forward(other, _letters(other))[:-1], f"= {question.states[-1]}"]


TEACHERS = {
    "F": Teacher(_writer(_letters), "forward: target, label, product so far"),
    "K": Teacher(_writer(_inverses), "the same walk and length, but the state is the inverse of the product"),
    "H": Teacher(_cautious, "opens with 'maybe', repeats the source, closes with a check"),
    "T": Teacher(_writer(_every_second), "terse: every second state"),
    "N": Teacher(_writer(_digits), "forward, the states in the signs of the labels"),
    "C": Teacher(_irrelevant, "the forward trace of another problem, then the right answer", sound=False),
    "W": Teacher(_guessed, "the right walk with random states, then the right answer", sound=False),
}

WALK = World(
    name="walk",
    words=(*LABELS, *STATES, *NODES, "?", ":", "=", "maybe", "check"),
    splits={
        "train": Split("train", SIZES, "plain"),
        "validation": Split("validation", SIZES, "plain"),
        "test": Split("test", SIZES, "plain"),
        "long": Split("test", (5, 6, 7), "plain"),
        "clutter": Split("test", SIZES, "clutter"),
    },
    teachers=TEACHERS,
    errors=ERRORS,
    draw=draw,
    read=read,
    answer=lambda question: LABELS[question.states[-1]],
    measure=lambda question: len(question.labels),
    judge_question=judge,
    extract=lambda completion: after_last(completion, "="),
)
