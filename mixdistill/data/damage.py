"""Records that cannot be read while a run trains: left out, counted and named, or the end of the run, by policy."""

import sys
import threading
from typing import Literal

from mixdistill.errors import UserError

Policy = Literal["quarantine", "strict"]


class Damage:
    """What one process has met so far; threads share it."""

    def __init__(self, policy: Policy):
        self._policy, self._lock = policy, threading.Lock()
        self._found: dict[int, str] = {}

    @property
    def traces(self) -> tuple[int, ...]:
        """Their numbers, ascending."""
        with self._lock:
            return tuple(sorted(self._found))

    def meet(self, trace_id: int, where: str, error: Exception) -> None:
        """Trace `trace_id` cannot be read. Says so once. Raises `UserError` under "strict"."""
        reason = f"trace {trace_id} ({where}) cannot be read: {(str(error).splitlines() or [''])[0][:200]}"
        if self._policy == "strict":
            raise UserError(f"{reason}. Copy the shards again or prepare them again, then the same command goes on")
        with self._lock:
            new = trace_id not in self._found
            self._found[trace_id] = reason
        if new:
            print(f"{reason}; left out wherever it would come", file=sys.stderr, flush=True)
