"""Planner: what every batch holds, as a pure function of a small state. The same on every process; reads no trace.

Teachers take turns by credit: each draw gives every teacher its share of what was drawn and takes it all from the one
that drew, and the next to draw is the one with the largest credit. So shares are exact in the long run whatever the
lengths, and no two batches differ by more than a trace a teacher. A teacher's traces come in a new random order every
epoch.
"""

import bisect
import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from mixdistill.data.corpus import Corpus, weight_vector
from mixdistill.data.mixture import Mixture
from mixdistill.data.packing import Item, Place, pack

# Traces drawn beyond what fills the batch: a larger choice packs tighter. Those left over wait in the state.
SPARE_TRACES = 48


@dataclasses.dataclass(frozen=True)
class State:
    """Where the plan stands before `train_step`. JSON values only; a few kilobytes."""

    train_step: int
    cursor: tuple[int, ...]  # traces drawn of each teacher so far
    credit: tuple[float, ...]  # of each teacher, in the mixture's unit
    weights: tuple[float, ...]
    waiting: tuple[tuple[int, int], ...] = ()  # (trace_id, drawn at train_step)
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


class Planner:
    """`state -> (plan, next state)` for one corpus and mixture."""

    def __init__(self, corpus: Corpus, mixture: Mixture):
        self.corpus, self.mixture = corpus, mixture
        self._footprint = corpus.footprint
        # One permutation a teacher is in use at a time, two around the end of an epoch.
        self._order = functools.lru_cache(2 * len(corpus.teachers) + 2)(self._shuffled)

    def start(self) -> State:
        """The state before train step 0."""
        weights = weight_vector(self.corpus, self.mixture)
        zeros = len(weights) * (0,)
        return State(0, zeros, tuple(map(float, zeros)), tuple(weights.tolist()))

    def plan(self, state: State) -> tuple[Plan, State]:
        """The batch of `state.train_step` and the state after it."""
        mixture, now = self.mixture, state.train_step
        weights, pending = _due(state)
        waiting = [Item(*pair) for pair in state.waiting]
        parked = [item for item in waiting if not weights[self.corpus.teacher[item.trace_id]]]
        items = [item for item in waiting if weights[self.corpus.teacher[item.trace_id]]]
        cursor, credit = self._draw(items, np.array(state.cursor), np.array(state.credit), weights, now)
        group = self.corpus.teacher if mixture.pack_by == "teacher" else None
        places, left = pack(items, self._footprint, group, mixture.rows, mixture.length, now)
        after = State(
            now + 1,
            tuple(cursor.tolist()),
            tuple(credit.tolist()),
            tuple(weights.tolist()),
            tuple(
                (item.trace_id, item.drawn_at) for item in sorted(parked + left, key=lambda i: (i.drawn_at, i.trace_id))
            ),
            pending,
        )
        return Plan(now, self._shuffle_rows(places, now)), after

    def _draw(self, items: list[Item], cursor, credit, weights, now: int):
        """Adds traces to `items` until they fill the batch and leave some choice; returns the new cursors, credits."""
        mixture, filled = self.mixture, sum(int(self._footprint[item.trace_id]) for item in items)
        capacity, spare = mixture.rows * mixture.length, 0
        floor = np.where(weights > 0, 0.0, -np.inf)
        while filled < capacity or spare < SPARE_TRACES - len(items) // 8:
            teacher = int(np.argmax(credit + floor))
            trace_id = self._next(teacher, int(cursor[teacher]))
            items.append(Item(trace_id, now))
            spare += filled >= capacity
            filled += int(self._footprint[trace_id])
            cursor[teacher] += 1
            credit += weights * self.corpus.cost[trace_id]
            credit[teacher] -= self.corpus.cost[trace_id]
        return cursor, credit

    def _next(self, teacher: int, cursor: int) -> int:
        pool = self.corpus.pools[teacher]
        epoch, index = divmod(cursor, len(pool))
        return int(pool[self._order(teacher, epoch)[index]])

    def _shuffled(self, teacher: int, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.mixture.seed, teacher, epoch))
        return rng.permutation(len(self.corpus.pools[teacher]))

    def _shuffle_rows(self, places: list[Place], now: int) -> tuple[Place, ...]:
        """Rows in random order: packing puts the long traces first, and each process reads a block of rows."""
        order = np.random.default_rng((self.mixture.seed, now)).permutation(self.mixture.rows)
        return tuple(sorted((p._replace(row=int(order[p.row])) for p in places), key=lambda p: (p.row, p.offset)))


def _due(state: State) -> tuple[np.ndarray, tuple]:
    """The weights in force at the state's train step, and the changes still to come."""
    weights = state.weights
    for at, changed in state.pending:
        if at <= state.train_step:
            weights = changed
    return np.array(weights), tuple(change for change in state.pending if change[0] > state.train_step)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
