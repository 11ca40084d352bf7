"""How a function says what it reads: the whole injection mechanism of signals, losses and gates.

A signal is a named array, mostly `[B, T]`. A pure function of signals is a signal itself, named by its `__name__`:
its positional parameters are read by name, its keyword-only parameters are knobs. `use` sets knobs, and lets a
positional parameter read another signal. `resolve` orders all functions once, when the recipe is built: a misspelt
name fails there, and the vocabulary pass learns which of its statistics are wanted.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mixdistill.errors import UserError, unknown

Signal = Callable[..., Any]
Schedule = Callable[[Any], Any]  # train_step -> value, as in optax
TWICE = "there are two signals of the name {!r}; rename the function"
CIRCLE = "signals read each other in a circle: {}"


class Scheduled(NamedTuple):
    """A knob that follows the train step: `use(worst_token, threshold=Scheduled(optax.linear_schedule(6, 3, 500)))`."""

    schedule: Schedule

    def __repr__(self) -> str:
        return "schedule"


@dataclass(frozen=True)
class Bound:
    """A function with its knobs set; `reads` maps each positional parameter to the name of the signal it is given."""

    fn: Signal
    knobs: Mapping[str, Any] = field(default_factory=dict)
    reads: Mapping[str, str] = field(default_factory=dict)
    sources: tuple["Bound", ...] = ()  # signals that `use` was given as functions: they join the graph

    @property
    def name(self) -> str:
        return self.fn.__name__

    @property
    def label(self) -> str:
        """The name with all that was set: `window_confidence(window=8)`; it tells two uses of one function apart."""
        redirected = {parameter: source for parameter, source in self.reads.items() if parameter != source}
        settings = ", ".join(f"{name}={value}" for name, value in {**redirected, **self.knobs}.items())
        return f"{self.name}({settings})" if settings else self.name

    @property
    def needs(self) -> dict[str, str]:
        """Parameter -> signal read; scheduled knobs read `train_step`."""
        scheduled = {name: "train_step" for name, knob in self.knobs.items() if isinstance(knob, Scheduled)}
        return {**self.reads, **scheduled}

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """The function's result, its parameters taken from `values` (signal name -> array)."""
        knobs = {k: v.schedule(values["train_step"]) if isinstance(v, Scheduled) else v for k, v in self.knobs.items()}
        try:
            return self.fn(*(values[source] for source in self.reads.values()), **knobs)
        except Exception as error:
            error.add_note(self.name)
            raise


def use(fn: Signal | Bound, /, **settings: Any) -> Bound:
    """Set knobs of `fn`, or let one of its positional parameters read another signal.

    `use(skew_kl, skew=0.2)` sets a knob. `use(worst_token, worst_surprisal=mine)` reads the signal `mine`, a function
    (or the name of a batch field or vocabulary signal), where `worst_token` says `worst_surprisal`.
    Raises `UserError` for an unknown or missing knob, `*args`, `**kwargs` and positional defaults.
    """
    base = fn if isinstance(fn, Bound) else Bound(fn)
    reads, defaults = _parameters(base.fn)
    for name in settings:
        if name not in reads and name not in defaults:
            raise UserError(f"{base.name}: {unknown('knob', name, (*defaults, *reads))}")
    knobs = {**base.knobs, **{name: value for name, value in settings.items() if name in defaults}}
    for name, default in defaults.items():
        if default is inspect.Parameter.empty and name not in knobs:
            raise UserError(f"{base.name} needs {name!r}: use({base.name}, {name}=...)")
    given = {name: value for name, value in settings.items() if name in reads}
    made = {name: use(value) for name, value in given.items() if not isinstance(value, str)}
    names = {**base.reads, **given, **{name: bound.label for name, bound in made.items()}}
    return Bound(base.fn, knobs, {name: names.get(name, name) for name in reads}, (*base.sources, *made.values()))


def _parameters(fn: Signal) -> tuple[list[str], dict[str, Any]]:
    """Names of the signals read, and knobs with their defaults."""
    if not callable(fn) or not hasattr(fn, "__name__"):
        raise UserError(f"{fn!r} is not a function; signals, losses and gates are functions of named arrays")
    reads, defaults = [], {}
    for p in inspect.signature(fn).parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise UserError(f"{fn.__name__} takes {str(p)!r}; name every signal that it reads")
        if p.kind is p.KEYWORD_ONLY:
            defaults[p.name] = p.default
        elif p.default is not p.empty:
            raise UserError(f"{fn.__name__}: {p.name!r} is positional, so it is a signal; make a knob keyword-only")
        else:
            reads.append(p.name)
    return reads, defaults


class Graph(NamedTuple):
    """Derived signals by name, in the order of their computation, and the given names (roots) that are read."""

    order: dict[str, Bound]
    roots: frozenset[str]

    def compute(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values` (at least the roots) with every derived signal added."""
        values = dict(values)
        for name, bound in self.order.items():
            values[name] = bound(values)
        return values


def resolve(wanted: Sequence[Signal | Bound], signals: Iterable[Signal | Bound], known: Iterable[str]) -> Graph:
    """Order the derived `signals` that `wanted` read, directly or not. `known` names are simply given.

    Raises `UserError` for a name that nobody makes (with the nearest), for two signals of one name, and for cycles.
    """
    known, table = set(known), {fn.name: fn for fn in map(use, signals)}
    order, roots, path = {}, set(), []
    for bound in map(use, signals):
        if bound.name in known or table[bound.name] != bound:
            raise UserError(TWICE.format(bound.name))

    def visit(reader: Bound) -> None:
        makers = table | {source.label: source for source in reader.sources}
        for name in reader.needs.values():
            if name in path:
                raise UserError(CIRCLE.format(" -> ".join([*path[path.index(name) :], name])))
            if name in known and name not in makers:
                roots.add(name)
            elif name not in makers:
                names = str(unknown("signal", name, known | set(makers))).partition("; ")[2]
                raise UserError(f"{reader.name} reads {name!r}; {names.replace('known:', 'known signals:')}")
            elif name in known or order.get(name, makers[name]) != makers[name]:
                raise UserError(TWICE.format(name))
            elif name not in order:
                path.append(name)
                visit(makers[name])
                order[path.pop()] = makers[name]

    for fn in wanted:
        visit(use(fn))
    return Graph(order, frozenset(roots))
