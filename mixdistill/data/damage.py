"""Records that cannot be read while a run trains: left out, counted and named, or the end of the run, by policy."""

import sys
import threading
from pathlib import Path
from typing import Literal

from mixdistill.errors import UserError

Policy = Literal["quarantine", "strict"]
HOPELESS = 16  # records in a row from the first on: then it is not some records, it is the files
REMEDY = "Copy the shards again or prepare them again, then the same command goes on"


class Damage:
    """What one process has met so far; threads share it."""

    def __init__(self, policy: Policy, num_traces: int = HOPELESS):
        """Of `num_traces` that there are."""
        self._policy, self._lock = policy, threading.Lock()
        self._hopeless = min(HOPELESS, num_traces)
        self._found: dict[int, str] = {}
        self._some_are_well = False

    @property
    def traces(self) -> tuple[int, ...]:
        """Their numbers, ascending."""
        with self._lock:
            return tuple(sorted(self._found))

    def well(self) -> None:
        """A trace was read."""
        self._some_are_well = True

    def meet(self, trace_id: int, folder: Path, index: int, error: Exception) -> None:
        """Trace `trace_id`, record `index` of the shards in `folder`, cannot be read. Says so once. Raises `UserError`
        under "strict", and where no record could be read."""
        reason = f"trace {trace_id} (record {index} of {folder}) cannot be read"
        reason += f": {(str(error).splitlines() or [''])[0][:200]}"
        if self._policy == "strict":
            raise UserError(f"{reason}. {REMEDY}")
        with self._lock:
            new = trace_id not in self._found
            self._found[trace_id] = reason
            count = len(self._found)
        if not self._some_are_well and count >= self._hopeless:
            files = sorted(path.name for path in folder.glob("*.array_record"))
            named = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
            raise UserError(f"none of {count} records could be read, the last: {reason}. Damaged: {named}. {REMEDY}")
        if new:
            print(f"{reason}; left out wherever it would come", file=sys.stderr, flush=True)
