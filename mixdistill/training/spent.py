"""Where the host's time goes: the train step's parts, and what is not a train step."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Literal

Part = Literal["data", "compile", "dispatch", "device", "evaluation", "checkpoint"]


class Spent:
    """Seconds by part.

    data: waiting for a batch and placing it, rollouts included. compile: the programs of train steps. dispatch: handing
    a train step to the device. device: waiting for its numbers. evaluation: held-out problems. checkpoint: what saving
    takes from the loop; the writing itself goes on beside it. What is in none of them is the loop's own.
    """

    def __init__(self, before: Mapping[str, float] | None = None):
        """`before`: what was counted already, by the process before this one."""
        self._seconds: dict[str, float] = dict(before or {})

    @contextlib.contextmanager
    def on(self, part: Part) -> Iterator[None]:
        """Counts what is done inside."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] = self._seconds.get(part, 0.0) + time.perf_counter() - began

    @property
    def counted(self) -> dict[str, float]:
        """Since the last `take`."""
        return dict(self._seconds)

    def take(self) -> dict[str, float]:
        """What was counted since the last call."""
        taken, self._seconds = self._seconds, {}
        return taken
