"""What training spends: tokens seen, tokens trained on, tokens drawn, FLOPs (`students/flops.py`).

The loop counts the FLOPs of every train step in the tally "flops", those of drawing what is trained on and of what
references say of it in "rollout/flops", those of answering held-out problems in "answers/flops"; metrics.jsonl holds
them, so that what a run has spent in all, pilots and branches included, is read from there, whichever processes it
took. A completion costs the same whether the sampler or a server drew it. Probes of references are not counted: each
problem is probed once a process.
"""

import collections
import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mixdistill.generation.drawn import Drawn
from mixdistill.generation.measures import Sums
from mixdistill.objective import Tally
from mixdistill.recipe.parameters import TeacherGradients
from mixdistill.students import flops
from mixdistill.students.student import Student


class Spending(NamedTuple):
    """Of a run, or of a stage."""

    seen: int  # targets
    trained: int  # of these, kept by some term's gates
    flops: float  # of all
    drawn: int = 0  # tokens of the student's completions and answers
    drawing: float = 0.0  # FLOPs, of these

    def plus(self, other: "Spending") -> "Spending":
        """Both."""
        return Spending._make(map(operator.add, self, other))

    def __str__(self) -> str:
        said = f"{self.seen:,} tokens seen, {self.trained:,} trained on, {self.flops:.3g} FLOPs"
        return said + (f" ({self.drawing:.3g} of them to draw {self.drawn:,} tokens)" if self.drawn else "")


NOTHING = Spending(0, 0, 0.0)


def of_train_step(
    student: Student, lengths: Sequence[int], gradients: TeacherGradients | None, num_teachers: int
) -> dict[str, Tally]:
    """The tally "flops" of a train step on sequences of these lengths."""
    sizes, counts = np.unique(np.asarray(lengths, np.int64), return_counts=True)
    each = [_of_sequence(student, int(size), gradients, num_teachers) for size in sizes]
    total = float(np.dot(each, counts))
    return {"flops": Tally(np.float64(total), np.float64(1.0))}  # pyright: ignore[reportArgumentType]


def of_drawing(student: Student, drawn: Drawn) -> Sums:
    """The tallies "answers/tokens" and "answers/flops" of answers to problems."""
    tokens = float(sum(len(said.tokens) for said in drawn.completions))
    return {"answers/tokens": (tokens, 1.0), "answers/flops": (drawing(student, drawn), 1.0)}


def drawing(student: Student, drawn: Drawn) -> float:
    """FLOPs of the completions."""
    sizes = [(len(p), len(said.tokens)) for p, said in zip(drawn.prompts, drawn.completions, strict=True)]
    return float(sum(flops.drawing_of(student, *size) * count for size, count in collections.Counter(sizes).items()))


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
        drawing = _sum(line, "rollout/flops") + _sum(line, "answers/flops")
        drawn = _sum(line, "rollout/tokens") + _sum(line, "answers/tokens")
        spent = _sum(line, "flops") + drawing
        now = Spending(round(seen), round(_sum(line, "kept")), spent, round(drawn), drawing)
        found[line["stage"]] = found.get(line["stage"], NOTHING).plus(now)
    return found


def in_all(lines: Iterable[Mapping[str, Any]]) -> Spending:
    """Of the whole run."""
    return functools.reduce(Spending.plus, spending(lines).values(), NOTHING)


def _sum(line: Mapping[str, Any], name: str) -> float:
    return (line["metrics"].get(name) or 0.0) * (line["weights"].get(name) or 0.0)
