"""One student of a study: a recipe run in a fresh folder, followed, and read back from its checkpoint."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mixdistill.evaluation.answers import answer, correctness
from mixdistill.evaluation.tasks import Task
from mixdistill.recipe import Recipe
from mixdistill.students.student import Params, Student
from mixdistill.studies.crew import Interrupted, Report
from mixdistill.traces.tokenizer import Tokenizer
from mixdistill.training.hooks import METRICS_FILE, Event, Hook, read_metrics
from mixdistill.training.loop import run
from mixdistill.training.workdir import Trained, open_trained


def train(plan: Recipe, workdir: Path, report: Report, hooks: Sequence[Hook] = ()) -> Trained:
    """Runs `plan` on one device in `workdir`, which is emptied first. Raises `Interrupted` if it was stopped
    by a signal, `RuntimeError` if by its guard."""
    shutil.rmtree(workdir, ignore_errors=True)
    size = plan.budget.size

    def follow(event: Event) -> None:
        if event.kind == "log":
            report(min((event.tokens if plan.budget.unit == "tokens" else event.train_step) / size, 1.0))

    outcome = run(plan, workdir, hooks=[follow, *hooks], devices=jax.devices()[:1], quiet=True)
    if (outcome.position.guard or {}).get("stopped"):
        raise RuntimeError(f"the guard stopped {plan.name} in {workdir}: {outcome.stopped_by}")
    if outcome.stopped_by:
        raise Interrupted
    return open_trained(workdir)


def solves(student: Student, params: Params, task: Task, tokenizer: Tokenizer, max_new: int) -> np.ndarray:
    """bool [problems]: whose greedy answer, of at most `max_new` tokens, is right."""
    return correctness(answer(student, params, task, tokenizer, max_new=max_new))


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines that a run has logged."""
    return read_metrics(workdir / METRICS_FILE)


def kept_tokens(lines: Sequence[dict[str, Any]]) -> int:
    """Completion tokens that no gate has closed, over a whole run."""
    return round(sum(line["metrics"]["kept"] * line["weights"]["kept"] for line in lines))


def shares(line: dict[str, Any]) -> dict[str, float]:
    """Each teacher's share of the completion tokens of the train steps that a line is about."""
    tokens = line["weights"]["teacher/tokens"]
    return {name: count / sum(tokens.values()) for name, count in tokens.items()}


def kept_shares(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Each teacher's share of the completion tokens that the gates kept, over these lines."""
    kept: dict[str, float] = {}
    for line in lines:
        for name, count in line["weights"]["teacher/kept"].items():
            kept[name] = kept.get(name, 0.0) + count * (line["metrics"]["teacher/kept"][name] or 0.0)
    return {name: count / max(sum(kept.values()), 1.0) for name, count in kept.items()}


class Curve:
    """A hook that examines the student `points` times at equal distances in tokens. `seconds`: what that took."""

    def __init__(self, student: Student, task: Task, tokenizer: Tokenizer, max_new: int, num_tokens: int, points: int):
        self.points: list[tuple[int, float]] = []  # (train step, accuracy)
        self.seconds = 0.0
        self._examine = lambda params: float(solves(student, params, task, tokenizer, max_new).mean())
        self._every = num_tokens / points

    def __call__(self, event: Event) -> None:
        if event.kind == "train_step" and event.tokens >= self._every * (len(self.points) + 1):
            began = time.perf_counter()
            self.points.append((event.train_step, self._examine(event.state.params)))
            self.seconds += time.perf_counter() - began
