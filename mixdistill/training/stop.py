"""Leave in good order: SIGTERM or Ctrl-C ends a run after the train step it is in, with a checkpoint."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Stop:
    """Asks, between train steps, whether to stop. The second Ctrl-C interrupts at once.

    With several processes all of them stop at the same train step, once any was sent SIGTERM (jax's own preemption
    notice; it needs `jax.distributed`, which several processes have anyway).
    """

    def __init__(self):
        self.signal: str | None = None
        self._before: dict[int, object] = {}

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

    def asked(self, train_step: int) -> bool:
        """True from the first question after the signal, on all processes alike."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(train_step):
            self.signal = "SIGTERM"
        return self.signal is not None
