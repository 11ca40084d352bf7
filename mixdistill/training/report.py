"""Report: turns what happens in the loop into events for hooks, and tallies of single train steps into lines."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax

from mixdistill.objective import Tally
from mixdistill.recipe import Recipe
from mixdistill.training import pending
from mixdistill.training.goodput import measured
from mixdistill.training.hooks import Event, Hook, Window
from mixdistill.training.position import Position
from mixdistill.training.spent import Spent
from mixdistill.training.state import TrainState

Tallies = Mapping[str, Tally]
Arrived = tuple[Position, Tallies]  # tallies of the train step that led to this position


class Late:
    """Holds the tallies of one train step until the next was dispatched, so that fetching them stalls nothing."""

    def __init__(self):
        self._held: Arrived | None = None

    def swap(self, new: Arrived | None) -> list[Arrived]:
        """Takes `new`, and gives back what was held before (nothing or one), now as numpy arrays."""
        held, self._held = self._held, new
        return [] if held is None else [(held[0], jax.device_get(held[1]))]


class Report:
    """Calls every hook on every event; a log event covers `log_every` train steps, fewer before a checkpoint.

    As a context manager it tells the hooks when an exception ends the run.
    """

    def __init__(self, recipe: Recipe, hooks: Sequence[Hook], start: Position, began: float, peak: float | None = None):
        """`began`: `time.perf_counter()` when this process took the run up; `peak`: FLOP/s of all devices, if known."""
        self._recipe, self._hooks, self._peak = recipe, hooks, peak
        self._began = began - start.seconds
        self._window, before = Window(), start.window or {"tallies": {}}
        self._window.add(pending.from_plain(before["tallies"]))
        self._last, self._logged = start, start.logged
        self.spent = Spent(before.get("spent"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None:
            self.event("failed", self._last, None)

    @property
    def seconds(self) -> float:
        """Spent on the run so far, processes before this one included."""
        return time.perf_counter() - self._began

    def event(
        self, kind, position: Position, state: TrainState | None, tallies: Mapping[str, Tally] | None = None
    ) -> None:
        """Tells the hooks."""
        stage = self._recipe.stages[min(position.stage, len(self._recipe.stages) - 1)].name
        spent = self.spent.take() if kind == "log" else {}
        tallies = {**tallies, **measured(tallies, spent, self._peak)} if tallies else {}
        event = Event(kind, position.train_step, stage, state, position.tokens, self.seconds, tallies, spent)
        for hook in self._hooks:
            hook(event)

    def add(self, position: Position, tallies: Tallies, state: TrainState) -> None:
        """Tallies of one more train step."""
        self._last = position
        self._window.add(tallies)
        if position.train_step % self._recipe.log_every == 0:
            self.flush(state)

    def unfinished(self) -> dict[str, Any] | None:
        """What has been added since the last log event, for `Position.window`; None if nothing was."""
        added = self._window.added
        if not added:
            return None
        return {"after": self._logged, "tallies": pending.to_plain(added), "spent": self.spent.counted}

    def flush(self, state: TrainState) -> None:
        """A log event for what has been added since the last; none if nothing was."""
        if tallies := self._window.take():
            self._logged = self._last.train_step
            self.event("log", self._last, state, tallies)
