"""Compiling before the first train step, where a signal can be heard."""

from typing import Any

from mixdistill.training.state import TrainState
from mixdistill.training.step import Tallies, TrainStep


def compiled(step: TrainStep, state: TrainState, batch: dict[str, Any]) -> TrainStep:
    """The program of `step` for arrays like these; for others `step` compiles its own. `state` is only looked at."""
    if not hasattr(step, "lower"):
        return step
    program = step.lower(state, batch).compile()  # pyright: ignore[reportFunctionMemberAccess]

    def run(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, Tallies]:
        try:
            return program(state, batch)
        except (TypeError, ValueError):  # other fields, shapes or shardings: found before anything is donated
            return step(state, batch)

    return run
