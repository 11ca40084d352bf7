"""ledger.jsonl: what every train step was trained on, and every decision of the guard, a line each.

    {"train_step": 120, "stage": "imitate", "traces": [...], "skipped": false}
    {"train_step": 120, "event": "quarantine", "teacher": "B", ...}

Lines after the checkpoint that a run goes on from are removed: they are of train steps that will come again.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LEDGER = "ledger.jsonl"
CLOCKS = ("cpu_seconds",)  # of a decision: not the same when it is made once more


class History:
    """Writes the ledger of one run; nothing where it is not `writing` (all processes but the first).

    Lines after train step `resumed` are removed first: they are of a process that died, and will come again.
    """

    def __init__(self, workdir: Path, resumed: int, *, writing: bool, quiet: bool):
        self._path, self._writing, self._quiet = workdir / LEDGER, writing, quiet
        self._seen: dict[int, tuple[list[int], int | None]] = {}
        if writing:
            cut(self._path, resumed)
        # A decision that followed on the checkpoint's train step is made once more.
        lines = read_ledger(self._path)
        self._known = [_timeless(line) for line in lines if "event" in line and line["train_step"] == resumed]

    def saw(self, train_step: int, traces: Sequence[int], planned: int | None) -> None:
        """The batch of a train step that was dispatched: its traces, and the targets that its plan holds."""
        self._seen[train_step] = sorted(set(map(int, traces))), planned

    def traces(self, train_step: int) -> list[int]:
        """Of a train step whose tallies have not arrived yet."""
        return self._seen[train_step][0] if train_step in self._seen else []

    def planned(self, train_step: int) -> int | None:
        """Targets of a train step whose tallies have not arrived yet."""
        return self._seen[train_step][1] if train_step in self._seen else None

    def arrived(self, train_step: int, stage: str, skipped: bool, decisions: Sequence[dict[str, Any]]) -> None:
        """What came of a train step, and what was decided on it."""
        lines: list[dict[str, Any]] = []
        if train_step in self._seen:
            traces = self._seen.pop(train_step)[0]
            lines.append({"train_step": train_step, "stage": stage, "traces": traces, "skipped": skipped})
        self._write(lines)
        self.decided(decisions)

    def decided(self, decisions: Sequence[dict[str, Any]]) -> None:
        """Decisions, each with its train step."""
        decisions = [one for one in decisions if _timeless(json.loads(json.dumps(one))) not in self._known]
        self._write(decisions)
        for decision in decisions:
            if self._writing and not self._quiet:
                print(f"train_step {decision['train_step']}: {words(decision)}", file=sys.stderr, flush=True)

    def _write(self, lines: Sequence[dict[str, Any]]) -> None:
        if lines and self._writing:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))

    def flush(self) -> None:
        """On the disk, not in its cache: before a checkpoint says that so much was done."""
        if self._writing and self._path.exists():
            with self._path.open("rb") as file:
                os.fsync(file.fileno())


def read_ledger(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a ledger.jsonl in order; none when there is no file. What is cut off or damaged is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            found = _parse(line)
            if found is not None:
                yield found


def cut(path: Path, train_step: int) -> None:
    """Removes what stands after `train_step`, and a last line that is cut off."""
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            found = _parse(line)
            if not line.endswith(b"\n") or (found is not None and found["train_step"] > train_step):
                break
            end += len(line)
    os.truncate(path, end)


def words(decision: dict[str, Any]) -> str:
    """A decision for people."""
    rest = {name: value for name, value in decision.items() if name not in ("event", "train_step", "traces")}
    return f"{decision['event']} " + ", ".join(f"{name} {value}" for name, value in rest.items())


def _timeless(decision: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in decision.items() if name not in CLOCKS}


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("train_step"), int) else None
