"""Term and Objective: what is minimised, resolved and tried out when it is built."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mixdistill.data.fields import FIELDS, TOP_K_FIELDS
from mixdistill.errors import UserError, unknown
from mixdistill.objective.tally import Tally
from mixdistill.signals.signal import Bound, Graph, Schedule, Signal, resolve, use
from mixdistill.signals.standard import STANDARD
from mixdistill.signals.vocabulary import NAMES

MADE = frozenset(NAMES) | {"mean_logit"}  # signals made from the student's hidden states
KNOWN_FIELDS = FIELDS | TOP_K_FIELDS
# Tallies per teacher that a train step makes where a stage asks for them, and that memory may follow.
OF_TRAIN_STEP = ("teacher/gradient_cosine",)
CONTEXT = ("train_step", "teachers")  # readable by name, but not [B, T]: an int32 scalar; the teachers' names


Value = dict[str, Array]  # of a memory entry


class Memory(NamedTuple):
    """`init(num_teachers)` gives the first value, `update(value, tallies, train_step)` the next; both pure.

    A value with "weights" float32[K] and "ready" bool[] is a router's: once ready, the loop hands its weights to the
    mixture every `every` train steps.
    """

    init: Callable[[int], Value]
    update: Callable[[Value, Mapping[str, Tally], Any], Value]
    every: int = 0  # train steps between two changes of the mixture; 0: no router


@dataclass(frozen=True)
class Term:
    """`coef x (product of gates) x loss`. `coef` may be a schedule of `train_step`. Gates are never differentiated."""

    loss: Signal | Bound
    coef: float | Schedule = 1.0
    gates: tuple[Signal | Bound, ...] = ()

    def __post_init__(self):
        _ = self.bound_loss, self.bound_gates

    @property
    def bound_loss(self) -> Bound:
        return use(self.loss)

    @property
    def bound_gates(self) -> tuple[Bound, ...]:
        return tuple(map(use, self.gates))

    @property
    def gate_names(self) -> tuple[str, ...]:
        """The gates' names; a repeated name gets a number."""
        names = [gate.name for gate in self.bound_gates]
        before = [names[:i].count(name) for i, name in enumerate(names)]
        return tuple(f"{name}_{n + 1}" if n else name for name, n in zip(names, before, strict=True))


@dataclass(frozen=True)
class Objective:
    """Terms to minimise, the signals they may read, running estimates, and signals to watch.

    `watch` names signals that are only logged, per teacher, as `teacher/<name>` (running estimates read them there).
    `fields` names batch fields beyond the standard ones (sidecars of scored shards). Where the gates of a term close a
    whole microbatch, the term learns from the teacher `fallback`, if there is one. Building it resolves every name;
    `with_teachers` also runs everything on abstract arrays. Both raise `UserError`.
    """

    terms: Mapping[str, Term]
    signals: tuple[Signal | Bound, ...] = STANDARD
    normalise: Literal["kept", "valid"] = "kept"  # "kept": a closed gate does not shrink the step; "valid": it does
    min_coverage: float = 0.05  # under "kept" the denominator is at least this share of the valid tokens
    memory: Mapping[str, Memory] = field(default_factory=dict)
    watch: tuple[Signal | Bound | str, ...] = ()
    fields: tuple[str, ...] = ()
    fallback: str | None = None
    teachers: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.terms:
            raise UserError("an objective needs at least one term: Objective({'imitate': Term(cross_entropy)})")
        if self.normalise not in ("kept", "valid"):
            raise UserError(f"normalise is {self.normalise!r}; it is 'kept' or 'valid'")
        if not 0 < self.min_coverage <= 1:
            raise UserError(
                f"min_coverage is {self.min_coverage}; it is a share of the valid tokens, above 0, at most 1"
            )
        if bad := [name for name in self.terms if "/" in name]:
            raise UserError(f"the term name {bad[0]!r} has a '/'; tallies use it as a separator")
        _ = self.graph

    @functools.cached_property
    def graph(self) -> Graph:
        """Every derived signal that is read, in order, and the given names that are read (`graph.roots`)."""
        bound = [fn for term in self.terms.values() for fn in (*term.bound_gates, term.bound_loss)]
        watched = [use(_watched, signal=w) for w in self.watch]
        return resolve([*bound, *watched], self.signals, {*KNOWN_FIELDS, *MADE, *CONTEXT, *self.memory, *self.fields})

    @property
    def watched(self) -> tuple[str, ...]:
        """Names of the watched signals."""
        return tuple(w if isinstance(w, str) else use(w).label for w in self.watch)

    @property
    def vocabulary_names(self) -> tuple[str, ...]:
        """What the vocabulary pass has to make."""
        return tuple(sorted((self.graph.roots | {"label_logprob"}) & MADE))

    @property
    def batch_names(self) -> tuple[str, ...]:
        """The batch fields that are read by terms and signals, optional ones among them."""
        ids = {"teacher_topk_ids"} if "topk_logprob" in self.graph.roots else set()
        return tuple(sorted(self.graph.roots & {*KNOWN_FIELDS, *self.fields} | ids))

    @functools.cached_property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Names of the terms that share a denominator: those with the same gates; all of them under "valid"."""
        if self.normalise == "valid":
            return (tuple(self.terms),)
        gates: list[tuple[Bound, ...]] = []
        names: list[list[str]] = []
        for name, term in self.terms.items():
            if term.bound_gates not in gates:
                gates, names = [*gates, term.bound_gates], [*names, []]
            names[gates.index(term.bound_gates)].append(name)
        return tuple(map(tuple, names))

    def with_teachers(self, teachers: tuple[str, ...]) -> "Objective":
        """This objective for these teachers (`teacher_id` k is `teachers[k]`), tried out on abstract arrays."""
        if len(set(teachers)) != len(teachers) or not teachers:
            raise UserError(f"teachers are {list(teachers)}; an objective needs at least one, each once")
        if self.fallback is not None and self.fallback not in teachers:
            raise unknown("fallback teacher", self.fallback, teachers)
        objective = replace(self, teachers=tuple(teachers))
        _try_out(objective)
        return objective


def _watched(signal):
    """Stands for the reader of a watched signal in the graph."""
    return signal


def _try_out(objective: Objective) -> None:
    """Trace everything on abstract arrays, so that a wrong shape or knob fails when the recipe is built."""
    from mixdistill.objective.evaluation import evaluate

    size, embed, vocabulary = {"B": 2, "T": 8, "K": 4}, 4, 32
    shape = size["B"], size["T"]
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name in objective.fields}
    for name, field_ in KNOWN_FIELDS.items():
        batch[name] = jax.ShapeDtypeStruct(tuple(size[axis] for axis in field_.shape), field_.dtype)
    params = {"hidden": jnp.zeros((*shape, embed)), "unembed": jnp.zeros((embed, vocabulary))}
    student: Any = SimpleNamespace(
        hidden=lambda params, batch: params["hidden"],
        unembed=lambda params: params["unembed"],
        vocab_size=vocabulary,
        soft_cap=None,
        unembed_layout="dv",
    )

    def run(batch, train_step):
        memory = {name: entry.init(len(objective.teachers)) for name, entry in objective.memory.items()}
        _, tallies = evaluate(objective, student, params, batch, train_step=train_step, memory=memory)
        tallies |= dict.fromkeys(OF_TRAIN_STEP, Tally(*jnp.zeros((2, len(objective.teachers)))))
        return {name: entry.update(memory[name], tallies, train_step) for name, entry in objective.memory.items()}

    try:
        jax.eval_shape(run, batch, jax.ShapeDtypeStruct((), jnp.int32))
    except UserError:
        raise
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        where = next(iter(getattr(error, "__notes__", ())), None) or "a loss, gate, signal or memory entry"
        raise UserError(f"{where} does not run on arrays of shape {shape}: {error}") from error
