"""The battery that every loss and gate has to pass: what the Objective promises, tried on a function it has never seen.

`check_loss(my_loss)` and `check_gate(my_gate)` run it on random packed traces of three teachers and a student that is
one table, so that whatever mixes tokens is the function's own doing. Seconds on a CPU; no data, no model.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixdistill.data.fields import FIELDS
from mixdistill.errors import UserError
from mixdistill.losses import cross_entropy
from mixdistill.memory import init_memory
from mixdistill.objective import (
    Objective,
    Tally,
    Term,
    combine,
    mean_gradient,
    sums_and_gradients,
)
from mixdistill.signals.signal import Bound, Signal
from mixdistill.signals.vocabulary_tiles import Tiles

TEACHERS = ("ann", "bob", "cid")
ROWS, LENGTH, VOCABULARY, EMBED = 8, 40, 29, 8
POISON = VOCABULARY - 1  # an input token that no trace has: its embedding may be NaN
# Several tiles in every direction and a ragged last one, so that the tiled code is really walked through.
TILED = {"backward": "tiles", "tiles": Tiles(64, None, 32, 16)}


class Finding(NamedTuple):
    """One property: `passed` is None where it is not defined for this function."""

    name: str
    passed: bool | None
    detail: str = ""


class Result(NamedTuple):
    loss: jax.Array
    gradient: Any
    tallies: dict[str, Tally]


def check_loss(loss: Signal | Bound, **options: Any) -> list[Finding]:
    """The battery for a loss. `options` of the `Objective` (memory, signals, fields) as the loss needs them."""
    return check_objective(Objective({"checked": Term(loss)}, **options))


def check_gate(gate: Signal | Bound, **options: Any) -> list[Finding]:
    """The battery for a gate, on cross entropy."""
    return check_objective(Objective({"checked": Term(cross_entropy, gates=(gate,))}, **options))


def check_objective(objective: Objective, *, seed: int = 0) -> list[Finding]:
    """Every property of the battery, in order; the first one, "builds", alone if it fails."""
    try:
        bench = _Bench(objective, seed)
    except UserError as error:
        return [Finding("builds", False, str(error))]
    return [Finding("builds", True), *(_finding(check, bench) for check in CHECKS)]


def _finding(check: Callable[["_Bench"], str | None], bench: "_Bench") -> Finding:
    name = check.__name__.replace("_", " ")
    try:
        skipped = check(bench)
    except AssertionError as error:
        return Finding(name, False, str(error))
    return Finding(name, None if skipped else True, skipped or "")


def _check_open(check_open):
    """The gate that the battery adds to every term, to close what it likes."""
    return check_open


class _Bench:
    """An objective, a student and a batch, and how to get loss, gradient and tallies from them."""

    def __init__(self, objective: Objective, seed: int):
        terms = {name: replace(term, gates=(*term.gates, _check_open)) for name, term in objective.terms.items()}
        fields = (*objective.fields, "check_open")
        self.objective = replace(objective, terms=terms, fields=fields).with_teachers(TEACHERS)
        self.memory = init_memory(self.objective)
        self.random = np.random.default_rng(seed)
        self.params = {
            "embed": self._normal(VOCABULARY, EMBED),
            "place": self._normal(LENGTH, EMBED),
            "unembed": self._normal(EMBED, VOCABULARY),
        }
        self.traces = [self._trace(i) for i in range(ROWS)]
        self.packed = self.rows([[0, 1], [2], [3, 4], [5, 6, 7]])
        self.jitted = jax.jit(functools.partial(self.measure, options=TILED))

    @property
    def batch_wide(self) -> bool:
        gates = [gate for term in self.objective.terms.values() for gate in term.bound_gates]
        return any(getattr(gate.fn, "batch_wide", False) for gate in gates)

    @functools.cached_property
    def result(self) -> Result:
        return self.jitted(self.params, self.packed)

    def _normal(self, *shape: int) -> jax.Array:
        return jnp.asarray(self.random.normal(size=shape), jnp.float32)

    def _trace(self, number: int) -> dict[str, np.ndarray]:
        length = int(self.random.integers(6, LENGTH // 3))
        step = np.sort(self.random.integers(0, 4, length))  # 0 is the prompt
        tokens = self.random.integers(0, POISON, length + 1)
        given = {
            "tokens": tokens[:-1],
            "target": tokens[1:],
            "step_id": step,
            "valid": step > 0,
            "content": (step > 0) & (self.random.random(length) < 0.7),
            "position": np.arange(length),
            "teacher_id": np.full(length, number % len(TEACHERS)),
            "trace_id": np.full(length, number),
            "teacher_logprob": -self.random.exponential(size=length),
            "check_open": np.ones(length),
        }
        return given | {name: self.random.random(length) for name in self.objective.fields if name not in given}

    def rows(self, rows: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
        """The batch that has these traces in these rows; the other rows are padding."""
        padding = {name: (field.dtype, field.padding) for name, field in FIELDS.items()}
        padding |= dict.fromkeys(self.objective.fields, (np.float32, 0))
        batch = {name: np.full((ROWS, LENGTH), value, dtype) for name, (dtype, value) in padding.items()}
        for b, numbers in enumerate(rows):
            start = 0
            for segment, number in enumerate(numbers, 1):
                trace = self.traces[number]
                span = slice(start, start := start + len(trace["tokens"]))
                batch["segment_id"][b, span] = segment
                for name, values in trace.items():
                    batch[name][b, span] = values
        return batch

    def student(self, dense: bool = False) -> Any:
        del dense
        return SimpleNamespace(
            hidden=lambda params, batch: params["embed"][batch["tokens"]] + params["place"][batch["position"]],
            unembed=lambda params: params["unembed"],
            vocab_size=VOCABULARY,
            soft_cap=None,
            unembed_layout="dv",
        )

    def sums(self, params: Any, batch: Mapping[str, Any], **context: Any) -> Any:
        context = {"train_step": jnp.int32(3), "memory": self.memory, **context}
        return sums_and_gradients(self.objective, self.student(), params, batch, **context)

    def measure(self, params: Any, batch: Mapping[str, Any], **context: Any) -> Result:
        return self.finish(*self.sums(params, batch, **context))

    def finish(self, total: Any, gradients: Any) -> Result:
        loss, tallies = combine(self.objective, total)
        return Result(
            loss.sum / jnp.maximum(loss.weight, 1e-30), mean_gradient(self.objective, total, gradients), tallies
        )
