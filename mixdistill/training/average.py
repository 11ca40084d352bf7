"""The averaged student: a running mean of the parameters in the train state, evaluated and saved beside them.

Polyak averaging (arXiv:1306.0237 used it for nets; mean teachers, arXiv:1703.01780):  mean <- d mean + (1 - d) params,
with d = min(decay, (1 + n) / (10 + n)) after n train steps, so that the start is soon forgotten. In float32, whatever
the parameters are in: at d = 0.999 bfloat16 would never move.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mixdistill.objective import Tally
from mixdistill.students.student import Params
from mixdistill.training.state import TrainState

MEMORY = "average"  # of the train state


def initial(params: Params) -> Params:
    """The memory entry before the first train step."""
    return jax.tree.map(lambda p: p.astype(jnp.float32), params)


def averaging(
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Tally]]], decay: float
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Tally]]]:
    """The train step `step`, which also moves the mean. A train step that is skipped leaves it alone."""

    def averaged_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Tally]]:
        done = state.train_step.astype(jnp.float32)
        state, tallies = step(state, batch)
        rate = (1 - jnp.minimum(decay, (1 + done) / (10 + done))) * (1 - tallies["optimizer/skipped"].sum)
        mean = jax.tree.map(lambda m, p: m + rate * (p.astype(jnp.float32) - m), state.memory[MEMORY], state.params)
        return state._replace(memory={**state.memory, MEMORY: mean}), tallies

    return averaged_step


def judged(state: TrainState) -> Params:
    """The parameters to evaluate: the mean where there is one."""
    if MEMORY not in state.memory:
        return state.params
    return jax.tree.map(lambda m, p: m.astype(p.dtype), state.memory[MEMORY], state.params)
