"""Leave in good order: SIGTERM or Ctrl-C ends a run after the train step it is in, with a checkpoint.

What takes long and can be done again (compiling, rollouts, held-out problems) is left at once. Several processes leave
together, from between train steps or from compiling; what all their devices are in the middle of cannot be left.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

import jax
from jax.experimental import multihost_utils

from mixdistill.training.processes import everywhere

POLL_SECONDS = 0.1


class Stopped(Exception):
    """A signal came during work that can be done again."""


class Stop:
    """Asks, between train steps, whether to stop. The second Ctrl-C interrupts at once.

    With several processes all of them stop at the same question, once any was sent SIGTERM (jax's own preemption
    notice; it needs `jax.distributed`, which several processes have anyway). So all have to ask equally often.
    """

    def __init__(self):
        self.signal: str | None = None
        self._asked = 0
        self._before: dict[int, object] = {}
        self._at_once = False

    def __enter__(self) -> "Stop":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
        if self._at_once:
            self._at_once = False
            raise Stopped

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises `Stopped`, also where something is waited for. One process alone: several have to
        leave together, which they do between train steps."""
        if self.signal is not None and self._before:
            raise Stopped
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def leaving[Result](self, work: Callable[[], Result]) -> Result:
        """`work()` in a thread, which is left to itself when a signal comes: a compiler hears none. Raises `Stopped`
        then, else whatever `work` raises. Several processes wait for each other, and leave together: call it alike."""
        done: list[Callable[[], Result]] = []

        def run() -> None:
            try:
                found = work()
                done.append(lambda: found)
            except BaseException as error:  # noqa: BLE001 - it is raised again, in the thread that waits
                done.append(_raiser(error))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while not everywhere(not thread.is_alive()):
            if self.asked():
                raise Stopped
            thread.join(POLL_SECONDS)
        return done[0]()

    def asked(self) -> bool:
        """True from the first question after the signal, on all processes alike."""
        if jax.process_count() > 1:
            self._asked += 1
            if multihost_utils.reached_preemption_sync_point(self._asked):
                self.signal = "SIGTERM"
        return self.signal is not None


def _raiser(error: BaseException) -> Callable[[], NoReturn]:
    def fail() -> NoReturn:
        raise error

    return fail
