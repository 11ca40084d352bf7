"""A side of a benchmark in a process of its own, which trains a few steps whenever it is its turn.

Imports nothing but the standard library, because sides live in environments of their own.
"""

import json
import resource
import sys
import time


class Turns:
    """Called before every train step; every `steps` of them it gives the turn back and waits for the next.

    For each turn it writes a line of JSON: CPU seconds of the process, tokens trained on, and the peak of memory so
    far in MiB.
    """

    def __init__(self, steps: int):
        self._steps, self._count, self._tokens = steps, 0, 0.0
        self._began: float | None = None

    def __call__(self) -> None:
        """Ends the process when there is no more turn."""
        if self._count % self._steps == 0:
            self._pause()
        self._count += 1

    def trained(self, tokens: float) -> None:
        """So many targets had a weight in the loss."""
        self._tokens += tokens

    def _pause(self) -> None:
        _settle()
        if self._began is not None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            turn = {"cpu": time.process_time() - self._began, "tokens": self._tokens, "peak_mib": peak}
            print("turn " + json.dumps(turn), flush=True)
        else:
            print("turn {}", flush=True)
        if not sys.stdin.readline():
            sys.exit(0)
        self._began, self._tokens = time.process_time(), 0.0


def _settle() -> None:
    """Until threads that still compute for the last step have ended."""
    quiet = 0
    while quiet < 3:
        before = time.process_time()
        time.sleep(0.05)
        quiet = quiet + 1 if time.process_time() - before < 0.005 else 0
