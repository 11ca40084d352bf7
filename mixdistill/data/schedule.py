"""Schedule: the plans between the oldest batch that nobody has read and the newest one that is being read ahead."""

import dataclasses
import threading
from collections.abc import Sequence

from mixdistill.data.planner import Plan, Planner, State


class Schedule:
    """Plans in order, each made once, for reading threads that ask ahead. What is planned is never taken back."""

    def __init__(self, planner: Planner, state: State):
        self._planner, self._lock = planner, threading.Lock()
        self._planned: dict[int, tuple[State, Plan]] = {}  # train_step -> (state before it, plan)
        self._next = state  # before the first train step without a plan
        self._oldest = state.train_step

    @property
    def state(self) -> State:
        """The state before the oldest unread batch, with all changes of weights that are still to come."""
        with self._lock:
            return self._planned[self._oldest][0] if self._oldest in self._planned else self._next

    @property
    def weights(self) -> tuple[float, ...]:
        """Those in force once all changes are."""
        with self._lock:
            return self._next.pending[-1][1] if self._next.pending else self._next.weights

    def plan(self, train_step: int) -> Plan:
        """The plan of a train step that is not read yet."""
        with self._lock:
            while train_step >= self._next.train_step:
                before = self._next
                plan, self._next = self._planner.plan(before)
                self._planned[before.train_step] = before, plan
            return self._planned[train_step][1]

    def read(self) -> Plan:
        """Marks the oldest batch as read, and returns its plan."""
        plan = self.plan(self._oldest)
        with self._lock:
            del self._planned[self._oldest]
            self._oldest += 1
        return plan

    def set_weights(self, weights: Sequence[float], at_train_step: int) -> None:
        """From `at_train_step` on, which must have no plan yet. A later call for the same train step replaces it."""

        def changed(state: State) -> State:
            others = [change for change in state.pending if change[0] != at_train_step]
            return dataclasses.replace(state, pending=tuple(sorted([*others, (at_train_step, tuple(weights))])))

        with self._lock:
            assert at_train_step >= self._next.train_step, "a batch that is planned already cannot change"
            self._next = changed(self._next)
            self._planned = {step: (changed(before), plan) for step, (before, plan) in self._planned.items()}
