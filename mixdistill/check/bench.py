"""An objective on the bench: how to get its sums and gradients for any batch of the eight traces."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixdistill.check.traces import (
    TEACHERS,
    Arrays,
    alone,
    arrange,
    make_params,
    make_traces,
    pull_back,
    quick_jit,
    signals,
)
from mixdistill.memory import init_memory, update_memory
from mixdistill.objective import Objective, Sums, combine, sums_of_signals
from mixdistill.signals.signal import Bound

TRAIN_STEP = 3


class Measured(NamedTuple):
    """What one batch adds to a train step. Sums, not means, so that it can be compared over any split of the traces."""

    loss: Any  # of each group, in nats
    weight: Any  # of each group, in tokens
    gradient: dict[str, Any]  # of loss.sum(), by parameter

    def __add__(self, other: "Measured") -> "Measured":
        return jax.tree.map(np.add, self, other)


def check_open(check_open):
    """The gate that the battery adds to every term, to close what it likes."""
    return check_open


class Bench:
    """`objective` with one gate more, and everything to try it with. Raises `UserError` if it does not build."""

    def __init__(self, objective: Objective, num_examples: int):
        self.num_examples = num_examples
        terms = {name: replace(term, gates=(*term.gates, check_open)) for name, term in objective.terms.items()}
        fields = (*objective.fields, "check_open")
        self.objective = replace(objective, terms=terms, fields=fields).with_teachers(TEACHERS)
        self.params = make_params()
        self.traces = make_traces(self.objective.fields, self.params)
        for trace in self.traces:
            trace["check_open"] = np.ones(len(trace["tokens"]))
        self.batch = arrange(self.traces, alone())
        self.memory = init_memory(self.objective)
        self.tallies = combine(self.objective, self.sums({**self.batch, **signals(self.params, self.batch)}))[1]
        self.memory = update_memory(self.objective, self.memory, self.tallies, TRAIN_STEP)
        self.compiled = quick_jit(self.plain)
        self.base = self.measure(self.batch)

    def functions(self) -> list[Bound]:
        """Losses, gates and derived signals that are at work."""
        terms = self.objective.terms.values()
        own = [fn for term in terms for fn in (term.bound_loss, *term.bound_gates)]
        return [*own, *self.objective.graph.order.values()]

    @property
    def batch_wide(self) -> bool:
        """Whether something compares the traces of a batch with each other."""
        return any(getattr(bound.fn, "batch_wide", False) for bound in self.functions())

    def sums(self, given: Mapping[str, Any]) -> Sums:
        """The objective's own, from batch fields and the student's signals."""
        return sums_of_signals(self.objective, given, train_step=jnp.int32(TRAIN_STEP), memory=self.memory)

    def plain(self, batch: Mapping[str, Any], made: Mapping[str, Any]) -> Measured:
        """The sums, and the gradient of the loss with respect to the student's floating signals."""
        floating = {name: x for name, x in made.items() if jnp.issubdtype(x.dtype, jnp.floating)}

        def loss(floating):
            total = self.sums({**batch, **made, **floating})
            return total.loss.sum(), total

        gradient, total = jax.grad(loss, has_aux=True)(floating)
        return Measured(total.loss, total.weight, gradient)

    def measure(
        self, batch: Mapping[str, Any], params: Mapping[str, Any] | None = None, *, dense: bool = False
    ) -> Measured:
        """As a train step would: student, vocabulary pass, objective, and back to the parameters."""
        params = self.params if params is None else params
        at_signals = self.compiled(batch, signals(params, batch, dense))
        gradient = pull_back(params, batch, at_signals.gradient, dense)
        return jax.device_get(at_signals._replace(gradient=gradient))

    def put(self, batch: Arrays, field: str, places: Any, value: Any) -> Arrays:
        """`batch` with `value` in `field` at `places`, pairs (trace, token); token None is the whole trace."""
        values = batch[field].copy()
        for trace, token in places:
            values[self.where(batch, trace, token)] = value
        return {**batch, field: values}

    def where(self, batch: Arrays, trace: int, token: int | None) -> np.ndarray:
        """bool [B, T]."""
        here = batch["trace_id"] == trace
        return here if token is None else here & (batch["position"] == token)

    def closed(self, batch: Arrays) -> np.ndarray:
        """bool as "probe": the tokens of the traces at which the battery's gate is closed."""
        found = np.zeros(self.params["probe"].shape[:2], bool)
        shut = (batch["trace_id"] >= 0) & (batch["check_open"] == 0)
        found[batch["trace_id"][shut], batch["position"][shut]] = True
        return found
