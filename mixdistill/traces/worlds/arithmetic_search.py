"""Searches for a way from several numbers to a target, every attempt written down."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

LARGEST = 99

State = tuple[int, ...]  # sorted


class Question(NamedTuple):
    """What to reach, from what."""

    target: int
    numbers: State


class Attempt(NamedTuple):
    """One operation on two numbers of a state."""

    state: State
    a: int
    sign: str
    b: int
    result: int

    @property
    def left(self) -> State:
        """The state that it leaves."""
        rest = list(self.state)
        rest.remove(self.a)
        rest.remove(self.b)
        return tuple(sorted([*rest, self.result]))

    @property
    def text(self) -> str:
        """The operation."""
        return f"{self.a} {self.sign} {self.b} = {self.result}"


def attempts(state: State) -> Iterator[Attempt]:
    """All that stay within 1..99, pairs from left to right; the larger number first for - and /, the smaller for + and
    *."""
    for low, high in dict.fromkeys(itertools.combinations(state, 2)):
        yield from (
            Attempt(state, a, sign, b, result)
            for a, sign, b, result in (
                (low, "+", high, low + high),
                (high, "-", low, high - low),
                (low, "*", high, low * high),
                (high, "/", low, high // low if high % low == 0 else 0),
            )
            if 1 <= result <= LARGEST
        )


Expand = Callable[[Question, State], list[Attempt]]


def in_order(question: Question, state: State) -> list[Attempt]:
    """As they come."""
    return [*attempts(state)]


def reversed_order(question: Question, state: State) -> list[Attempt]:
    """From the right, division first."""
    return [*attempts(state)][::-1]


def nearest(question: Question, state: State) -> list[Attempt]:
    """Those first whose result is nearest to the target."""
    return sorted(attempts(state), key=lambda attempt: abs(question.target - attempt.result))


def depth_first(question: Question, expand: Expand) -> list[Attempt]:
    """Follows an attempt to its end before the next one; ends with the one that hits, if there is one. A state met
    before is not searched again."""
    made: list[Attempt] = []
    met: set[State] = set()

    def hits(state: State) -> bool:
        met.add(state)
        for attempt in expand(question, state):
            made.append(attempt)
            left = attempt.left
            if left == (question.target,) or (len(left) > 1 and left not in met and hits(left)):
                return True
        return False

    hits(question.numbers)
    return made


def breadth_first(question: Question, expand: Expand) -> list[Attempt]:
    """All attempts on one level before the next."""
    made: list[Attempt] = []
    level, met = [question.numbers], {question.numbers}
    while level:
        below: list[State] = []
        for attempt in (attempt for state in level for attempt in expand(question, state)):
            made.append(attempt)
            if attempt.left == (question.target,):
                return made
            if len(attempt.left) > 1 and attempt.left not in met:
                met.add(attempt.left)
                below.append(attempt.left)
        level = below
    return made


def solution(made: Sequence[Attempt]) -> list[Attempt]:
    """The way to the last attempt: what left its state, and so on, each time the first that did."""
    first: dict[State, Attempt] = {}
    for attempt in made:
        first.setdefault(attempt.left, attempt)
    way = [made[-1]]
    while way[0].state in first:
        way.insert(0, first[way[0].state])
    return way
