"""What training on recorded traces spends: tokens seen, tokens trained on, FLOPs (`students/flops.py`).

The loop counts the FLOPs of every train step in the tally "flops"; metrics.jsonl holds them, so that what a run has
spent in all, pilots and branches included, is read from there, whichever processes it took. The student's own
completions are not counted: what drawing them costs depends on who draws.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mixdistill.objective import Tally
from mixdistill.recipe.parameters import TeacherGradients
from mixdistill.students import flops
from mixdistill.students.student import Student


class Spending(NamedTuple):
    """Of a run, or of a stage."""

    seen: int  # targets
    trained: int  # of these, kept by some term's gates
    flops: float

    def plus(self, other: "Spending") -> "Spending":
        """Both."""
        return Spending(self.seen + other.seen, self.trained + other.trained, self.flops + other.flops)

    def __str__(self) -> str:
        return f"{self.seen:,} tokens seen, {self.trained:,} trained on, {self.flops:.3g} FLOPs"


NOTHING = Spending(0, 0, 0.0)


def of_train_step(
    student: Student, lengths: Sequence[int], gradients: TeacherGradients | None, num_teachers: int
) -> dict[str, Tally]:
    """The tally "flops" of a train step on sequences of these lengths."""
    sizes, counts = np.unique(np.asarray(lengths, np.int64), return_counts=True)
    each = [_of_sequence(student, int(size), gradients, num_teachers) for size in sizes]
    total = float(np.dot(each, counts))
    return {"flops": Tally(np.float64(total), np.float64(1.0))}  # pyright: ignore[reportArgumentType]


def _of_sequence(student: Student, size: int, gradients: TeacherGradients | None, num_teachers: int) -> float:
    plain = flops.learning_of(student, size)
    if gradients is None:
        return plain
    if gradients.mode == "exact":  # one forward, a backward for each teacher
        return plain * (1 + 2 * num_teachers) / 3
    # A forward, and forward and backward through the vocabulary.
    again = flops.forward_parts(student.config, size)["vocabulary"] * 2 if student.config else 0.0
    return plain + plain / 3 + again


def spending(lines: Iterable[Mapping[str, Any]]) -> dict[str, Spending]:
    """By stage, from the lines of a metrics.jsonl."""
    found: dict[str, Spending] = {}
    for line in lines:
        seen = sum((line["weights"].get("teacher/tokens") or {}).values())
        now = Spending(round(seen), round(_sum(line, "kept")), _sum(line, "flops"))
        found[line["stage"]] = found.get(line["stage"], NOTHING).plus(now)
    return found


def in_all(lines: Iterable[Mapping[str, Any]]) -> Spending:
    """Of the whole run."""
    return functools.reduce(Spending.plus, spending(lines).values(), NOTHING)


def _sum(line: Mapping[str, Any], name: str) -> float:
    return (line["metrics"].get(name) or 0.0) * (line["weights"].get(name) or 0.0)
