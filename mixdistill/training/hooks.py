"""Hooks: plain callables on an Event. Metrics files, TensorBoard and the screen are hooks like any other.

    def best_so_far(event: Event) -> None:
        if event.kind == "checkpoint": ...

Every number is a Tally until it is written; a line covers the train steps since the line before it.
"""

import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from mixdistill.objective import Tally, complaints
from mixdistill.optimizers import Budget
from mixdistill.training.goodput import MFU

METRICS_FILE = "metrics.jsonl"


class Event(NamedTuple):
    """Something happened. `train_step` counts the train steps that are done.

    start: before the first train step of this process. train_step: after each was dispatched. log: tallies of several
    train steps are here. stage: a stage ended. checkpoint: one is being written. end: the run is over, or was stopped.
    failed: an exception ends it. `state` holds the arrays after `train_step` (None after "failed"); the next train step
    takes them, so copy what you keep.
    """

    kind: Literal["start", "train_step", "log", "stage", "checkpoint", "end", "failed"]
    train_step: int
    stage: str
    state: Any  # a TrainState
    tokens: int  # targets seen so far
    seconds: float  # spent so far, earlier processes of this run included
    tallies: Mapping[str, Tally] = {}  # numpy; only for "log"
    spent: Mapping[str, float] = {}  # seconds by part (see `Spent`) since the last "log"; only for "log"


Hook = Callable[[Event], None]


class Window:
    """Adds up the tallies of several train steps."""

    def __init__(self):
        self._total: dict[str, Tally] = {}

    def add(self, tallies: Mapping[str, Tally]) -> None:
        """Numpy tallies of one train step. One that is not finite stands for itself and hides no other."""
        for name, (total, weight) in tallies.items():
            finite = np.isfinite(total) & np.isfinite(weight)
            # float64: a count of tokens outgrows what float32 holds exactly.
            added = [np.where(finite, x, 0.0).astype(np.float64) for x in (total, weight)]
            before = self._total.get(name)
            self._total[name] = Tally._make(added if before is None else map(np.add, before, added))

    @property
    def added(self) -> dict[str, Tally]:
        """The sums since the last `take`."""
        return self._total

    def take(self) -> dict[str, Tally]:
        """What was added since the last call."""
        total, self._total = self._total, {}
        return total


def means(tallies: Mapping[str, Tally]) -> dict[str, np.ndarray]:
    """The last division: NaN where nothing was counted."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {name: np.where(t.weight > 0, np.divide(t.sum, t.weight), np.nan) for name, t in tallies.items()}


def mfu_words(numbers: Mapping[str, np.ndarray]) -> list[str]:
    """What is said of MFU where it is known (`goodput.py`); else nothing."""
    return [f"MFU {numbers[MFU]:.1%}"] if math.isfinite(numbers.get(MFU, math.nan)) else []


def json_lines(workdir: Path, teachers: tuple[str, ...], resumed: int) -> Hook:
    """Writes a line to metrics.jsonl at every log event. Lines after train step `resumed` are removed first: they are
    of a process that died, and will come again."""
    path = workdir / METRICS_FILE
    kept = [line for line in read_metrics(path) if line["train_step"] <= resumed]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    temporary.replace(path)

    def hook(event: Event) -> None:
        if event.kind == "log":
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_line(event, teachers), allow_nan=False) + "\n")

    return hook


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; [] when there is none. A last line that was cut off is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def _line(event: Event, teachers: tuple[str, ...]) -> dict[str, Any]:
    """`metrics` are means and `weights` what they were taken over, so a reader can merge lines again."""
    numbers = means(event.tallies)
    return {
        "train_step": event.train_step,
        "stage": event.stage,
        "tokens": event.tokens,
        "seconds": round(event.seconds, 3),
        "clock": round(time.time(), 3),
        "spent": {part: round(seconds, 4) for part, seconds in event.spent.items()},
        "metrics": {name: _plain(value, teachers) for name, value in sorted(numbers.items())},
        "weights": {name: _plain(tally.weight, teachers) for name, tally in sorted(event.tallies.items())},
    }


def _plain(value: Any, teachers: tuple[str, ...]) -> Any:
    """A number (None where not finite), a list, or for a vector with an entry a teacher, a dict by name."""
    if value.ndim:
        items = [_plain(item, teachers) for item in value]
        return dict(zip(teachers, items, strict=True)) if len(items) == len(teachers) else items
    return float(value) if math.isfinite(value) else None


def scalars(event: Event, teachers: tuple[str, ...]) -> dict[str, float]:
    """The means of a log event, each a number: a vector becomes one a teacher. What is not finite is left out."""
    named = (
        (f"{name}/{key}" if key else name, number)
        for name, value in _line(event, teachers)["metrics"].items()
        for key, number in (value.items() if isinstance(value, dict) else [("", value)])
    )
    return {name: number for name, number in named if isinstance(number, float)}


def tensorboard(workdir: Path, teachers: tuple[str, ...], resumed: int) -> Hook:
    """Writes the same means as TensorBoard scalars; a vector becomes one scalar a teacher."""
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=resumed + 1 if resumed else None)

    def hook(event: Event) -> None:
        if event.kind == "log":
            for name, number in scalars(event, teachers).items():
                writer.add_scalar(name, number, event.train_step)
        elif event.kind in ("end", "failed"):
            writer.close()

    return hook


def plain_progress(budget: Budget, write: Callable[[str], Any] = print) -> Hook:
    """One line a log event, for logs that are not a terminal."""
    speed = Speed()

    def hook(event: Event) -> None:
        rate = speed(event)
        if event.kind == "log":
            numbers = means(event.tallies)
            spent = event.train_step if budget.unit == "train_steps" else event.tokens
            words = [f"train_step {event.train_step}", event.stage, f"{100 * spent / budget.size:.1f}%"]
            words += [f"loss {numbers['loss']:.4f}"] + [f"{rate:,.0f} tokens/s"] * (rate > 0) + mfu_words(numbers)
            skipped = float(event.tallies["optimizer/skipped"].sum)
            write("  ".join(words + [f"skipped {skipped:.0f} train steps"] * (skipped > 0)))

    return hook


def say_once(write: Callable[[str], Any]) -> Hook:
    """Says what a user has to hear of an objective (a broken gate, no data, a fallback), each thing the first time."""
    said: set[str] = set()

    def hook(event: Event) -> None:
        for words in complaints(event.tallies) if event.kind == "log" else ():
            if (what := re.sub(r"\d+", "", words)) not in said:
                said.add(what)
                write(f"train_step {event.train_step}: {words}")

    return hook


class Speed:
    """Tokens a second between log events; 0 until there are two of them."""

    def __init__(self):
        self._last: tuple[float, int] | None = None

    def __call__(self, event: Event) -> float:
        if event.kind not in ("start", "log"):
            return 0.0
        before, self._last = self._last, (time.perf_counter(), event.tokens)
        return (
            (event.tokens - before[1]) / max(self._last[0] - before[0], 1e-9) if before and event.kind == "log" else 0.0
        )


def default_hooks(
    workdir: Path, teachers: tuple[str, ...], budget: Budget, resumed: int, *, quiet: bool
) -> Iterable[Hook]:
    """Metrics on disk and, unless `quiet`, a table on a terminal or lines elsewhere. Only on the first host."""
    if jax.process_index() > 0:
        return
    yield json_lines(workdir, teachers, resumed)
    yield tensorboard(workdir, teachers, resumed)
    if quiet:
        return
    yield say_once(lambda line: print(line, file=sys.stderr, flush=True))
    if os.isatty(1):
        from mixdistill.training.screen import screen

        yield screen(teachers, budget)
    else:
        yield plain_progress(budget, lambda line: print(line, flush=True))
