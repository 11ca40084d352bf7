"""Planner: what every batch holds, as a pure function of a small state. The same on every process; reads no trace.

Teachers take turns by credit: each draw (under pack_by="teacher" each row) gives every teacher its share of what was
drawn and takes it all from the one that drew, and the next to draw is the one with the largest credit. So shares are
exact in the long run whatever the lengths. A teacher's traces come in a new random order every epoch. A row is filled
from a few traces more than it holds; the others wait, in the state, and the oldest goes into the next row.
"""

import bisect
import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import numpy as np

from mixdistill.data.corpus import Corpus, weight_vector
from mixdistill.data.mixture import Mixture
from mixdistill.data.packing import Place, fill
from mixdistill.errors import UserError, unknown

# Traces to choose from when a row is filled: of so many, some nearly always add up to the row's length. Those that are
# left wait in the state, under "teacher" so many for each teacher.
CHOICE = {"mixed": 64, "teacher": 16}
MIXED = -1


@dataclasses.dataclass(frozen=True)
class State:
    """Where the plan stands before `train_step`. JSON values only; a few kilobytes."""

    train_step: int
    cursor: tuple[int, ...]  # traces drawn of each teacher so far
    credit: tuple[float, ...]  # of each teacher, in the mixture's unit
    weights: tuple[float, ...]
    waiting: tuple[int, ...] = ()  # trace_ids that are drawn and in no batch yet, oldest first
    pending: tuple[tuple[int, tuple[float, ...]], ...] = ()  # weights that take effect at a train step, in order

    def to_json(self) -> dict[str, Any]:
        """JSON values; `from_json` inverts it. Floats are written in full, so nothing is lost."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(found: dict[str, Any]) -> "State":
        """What `to_json` wrote, also after a trip through JSON."""
        return State(**{name: _tuples(value) for name, value in found.items()})


class Plan(NamedTuple):
    """One batch: its train step and the place of every trace in it, ordered by row and offset."""

    train_step: int
    places: tuple[Place, ...]

    def row(self, row: int) -> tuple[Place, ...]:
        """The places of one row, in order."""
        start, stop = (bisect.bisect_left(self.places, r, key=lambda place: place.row) for r in (row, row + 1))
        return self.places[start:stop]


def in_turn(corpus: Corpus, mixture: Mixture) -> tuple[int, ...]:
    """Numbers of the teachers that take turns, in order: the control, if there is one, and those with a weight at the
    start, but for the anchor. Raises `UserError` for an anchor that has none, or nobody to accompany."""
    weights = weight_vector(corpus, mixture)
    among = tuple(int(k) for k in np.flatnonzero(weights) if corpus.teachers[k] != mixture.anchor)
    if mixture.anchor is not None:
        if mixture.anchor not in corpus.teachers:
            raise unknown("anchor", mixture.anchor, corpus.teachers)
        if not weights[corpus.teachers.index(mixture.anchor)] or not among:
            raise UserError(f"anchor {mixture.anchor!r} and the teachers beside it all need a weight in the mixture")
    return (corpus.teachers.index(mixture.anchor), *among) if mixture.anchor and mixture.control else among


class Planner:
    """`state -> (plan, next state)` for one corpus and mixture."""

    def __init__(self, corpus: Corpus, mixture: Mixture):
        self.corpus, self.mixture = corpus, mixture
        # One permutation a teacher is in use at a time, two around the end of an epoch.
        self._order = functools.lru_cache(2 * len(corpus.teachers) + 2)(self._shuffled)

    def start(self) -> State:
        """The state before train step 0."""
        weights = weight_vector(self.corpus, self.mixture)
        zeros = len(weights) * (0,)
        return State(0, zeros, tuple(map(float, zeros)), tuple(weights.tolist()))

    def plan(self, state: State) -> tuple[Plan, State]:
        """The batch of `state.train_step` and the state after it."""
        weights, pending = _due(state)
        now = self._turn(weights, state.train_step)
        draft = Draft(np.array(state.cursor), np.array(state.credit), now, self._queues(state.waiting, now))
        places = [place for row in range(self.mixture.rows) for place in self._row(draft, row)]
        after = State(
            state.train_step + 1,
            tuple(draft.cursor.tolist()),
            tuple(draft.credit.tolist()),
            tuple(weights.tolist()),
            tuple(trace_id for _, queue in sorted(draft.queues.items(), reverse=True) for trace_id in queue),
            pending,
        )
        return Plan(state.train_step, tuple(places)), after

    def _turn(self, weights: np.ndarray, train_step: int) -> np.ndarray:
        """The weights, or with `Mixture.turns` those of the teacher whose turn it is; as they are where that one has
        lost its weight."""
        if self.mixture.turns is None:
            return weights
        among, turn = in_turn(self.corpus, self.mixture), np.zeros(len(weights))
        turn[among[train_step // self.mixture.turns % len(among)]] = 1.0
        if self.mixture.anchor is not None:
            turn[self.corpus.teachers.index(self.mixture.anchor)] = 1.0
        return turn / turn.sum() if weights[turn > 0].all() else weights

    def _queues(self, waiting: tuple[int, ...], weights: np.ndarray) -> dict[int, list[int]]:
        """Traces that may share a row, together, oldest first; those of a teacher without weight by themselves."""
        queues: dict[int, list[int]] = {}
        for trace_id in waiting:
            teacher = int(self.corpus.teacher[trace_id])
            apart = self.mixture.pack_by == "teacher" or not weights[teacher]
            queues.setdefault(teacher if apart else MIXED, []).append(trace_id)
        return queues

    def _row(self, draft: "Draft", row: int) -> list[Place]:
        """Fills one row from a queue that is first filled up itself."""
        teacher = draft.next_teacher() if self.mixture.pack_by == "teacher" else None
        queue = draft.queues.setdefault(MIXED if teacher is None else teacher, [])
        sizes = self._stock(draft, queue, teacher)
        chosen = fill(sizes, self.mixture.length)
        offsets = itertools.accumulate((sizes[i] for i in chosen), initial=0)
        places = [Place(queue[i], row, offset) for i, offset in zip(chosen, offsets, strict=False)]
        if teacher is not None:
            draft.charge(teacher, float(self.corpus.cost[[place.trace_id for place in places]].sum()))
        queue[:] = [trace_id for i, trace_id in enumerate(queue) if i not in chosen]
        return places

    def _stock(self, draft: "Draft", queue: list[int], teacher: int | None) -> list[int]:
        """Draws until `queue` has a row's length and `CHOICE` traces, all of `teacher` or (None) of those whose turn it
        is, and returns their footprints."""
        sizes = self.corpus.footprint[queue].tolist()
        missing = self.mixture.length - sum(sizes)
        # The anchor's traces that wait at the end of a turn come first in the next: few, so that it has its share.
        choice = 4 if self.mixture.anchor is not None else CHOICE[self.mixture.pack_by]
        while missing > 0 or len(queue) < choice:
            drawn = draft.next_teacher() if teacher is None else teacher
            trace_id = self._draw(drawn, int(draft.cursor[drawn]))
            draft.cursor[drawn] += 1
            if teacher is None:
                draft.charge(drawn, float(self.corpus.cost[trace_id]))
            queue.append(trace_id)
            sizes.append(int(self.corpus.footprint[trace_id]))
            missing -= sizes[-1]
        return sizes

    def _draw(self, teacher: int, cursor: int) -> int:
        pool = self.corpus.pools[teacher]
        epoch, index = divmod(cursor, len(pool))
        return int(pool[self._order(teacher, epoch)[index]])

    def _shuffled(self, teacher: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.mixture.seed, teacher, epoch))
        return rng.permutation(len(self.corpus.pools[teacher]))


@dataclasses.dataclass
class Draft:
    """The numbers of a state while its batch is being made."""

    cursor: np.ndarray
    credit: np.ndarray
    weights: np.ndarray
    queues: dict[int, list[int]]

    def next_teacher(self) -> int:
        """The one with the largest credit of those with a weight."""
        return int(np.argmax(np.where(self.weights > 0, self.credit, -np.inf)))

    def charge(self, teacher: int, cost: float) -> None:
        """Counts `cost` as spent on this teacher."""
        self.credit += self.weights * cost
        self.credit[teacher] -= cost


def _due(state: State) -> tuple[np.ndarray, tuple]:
    """The weights in force at the state's train step, and the changes still to come."""
    weights = state.weights
    for at, changed in state.pending:
        if at <= state.train_step:
            weights = changed
    return np.array(weights), tuple(change for change in state.pending if change[0] > state.train_step)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
