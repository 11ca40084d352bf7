"""Gradient alignment: more of the teachers whose gradient points where the others' (or an anchor's) points.

A relative of GRACE (arXiv:2511.02833), which scores whole teachers offline by their gradients; no parity is claimed. It
reads "teacher/gradient_cosine", which a stage makes with `Stage(teacher_gradients=TeacherGradients(...))`. Two teachers
that clash at few tokens agree at all the others, and look aligned: in a procedural world gradient cosines ranked the
conflicting teachers above the harmless ones. Not a safe default.
"""

from collections.abc import Mapping
from typing import Any

import jax

from mixdistill.errors import UserError
from mixdistill.memory import Memory, Value, running
from mixdistill.objective import Tally

TALLY = "teacher/gradient_cosine"


def gradient_alignment(*, temperature: float = 0.2, decay: float = 0.9, floor: float = 0.1, every: int = 10) -> Memory:
    """w = (1 - floor) softmax(c / temperature) + floor / K, c_k the running mean of teacher k's cosine.

    A teacher without data keeps its cosine, 0 at first. Raises `UserError` in a stage that compares no gradients.
    """
    mean = running(TALLY, decay=decay)

    def finish(value: Value) -> Value:
        share = jax.nn.softmax(value["value"] / temperature)
        weights = (1 - floor) * share + floor / share.shape[0]
        return {**value, "weights": weights, "ready": (value["num_updates"] > 0).any()}

    def update(value: Value, tallies: Mapping[str, Tally], train_step: Any) -> Value:
        if TALLY not in tallies:
            raise UserError("gradient_alignment needs Stage(teacher_gradients=TeacherGradients(...)), which is missing")
        return finish(mean.update(value, tallies, train_step))

    return Memory(lambda num_teachers: finish(mean.init(num_teachers)), update, every)
