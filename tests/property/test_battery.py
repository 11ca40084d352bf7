"""Every shipped loss and gate passes the battery of `mixdistill check-loss`.

Several share an objective, one term each, because compiling is what costs; if one of them fails, each is tried alone.
A new loss or gate is tried without being told, unless it has a knob without a default: give that a value below.
"""

import inspect
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdistill import check, gates, losses, routers
from mixdistill.check.traces import TEACHERS, VOCABULARY, alone, arrange, hidden, make_params, make_traces
from mixdistill.data.fields import FIELDS, TOP_K_FIELDS
from mixdistill.losses import cross_entropy
from mixdistill.memory import running
from mixdistill.objective import Objective, Term, complaints
from mixdistill.objective.build import CONTEXT, MADE
from mixdistill.optimizers import Budget, OptimizerConfig, make_optimizer
from mixdistill.signals.signal import use
from mixdistill.signals.standard import STANDARD
from mixdistill.students.student import Student
from mixdistill.training.state import TrainState, initial_memory
from mixdistill.training.step import make_train_step

# Knobs that have no default, or one at which the random traces are all kept or all refused.
KNOBS = {
    "aslec": {"threshold": -4.0},
    "at_least": {"score": "trace_headless_logprob", "threshold": -4.0},
    "at_most": {"score": "trace_surprisal", "threshold": 4.0},
    "difficulty": {"hardest": 100.0},
    "length": {"longest": 7},
    "local_naturalness": {"threshold": -1.0},
    "lowest_traces": {"score": "trace_surprisal", "keep": 0.5},
    "mean_surprisal": {"threshold": 4.0},
    "near_anchor": {"anchor": "bob"},
    "rank_surprisal": {"threshold": 1.5},
    "soft_at_most": {"score": "trace_surprisal", "threshold": 4.0, "width": 0.5},
    "teacher_weight": {"weights": {"ann": 0.5, "bob": 0.0}},
    "worst_token": {"threshold": 10.0},
}
KNOWN = {*FIELDS, *TOP_K_FIELDS, *MADE, *CONTEXT, *(use(signal).name for signal in STANDARD)}
MEMORY = {"baseline": running("teacher/content_nll")}
PER_OBJECTIVE = 12


def bound(room, name):
    return use(getattr(room, name), **KNOBS.get(name, {}))


def term(room, name):
    fn = bound(room, name)
    return Term(fn) if room is losses else Term(cross_entropy, gates=(fn,))


def objective(room, names):
    """One term for each name. What nobody makes is a field of scored shards."""
    terms = {name: term(room, name) for name in names}
    read = {source for name in names for source in bound(room, name).reads.values()}
    makers = {use(signal).name: use(signal) for signal in STANDARD}
    read |= {source for name in read & makers.keys() for source in makers[name].reads.values()}
    memory = {name: entry for name, entry in MEMORY.items() if name in read}
    return Objective(terms, memory=memory, fields=tuple(sorted(read - KNOWN - set(memory))))


def groups(room):
    """Names in batches; gates that compare the traces of a batch apart from those that do not."""
    wide = {name: getattr(getattr(room, name), "batch_wide", False) for name in room.__all__}
    for kind in (False, True):
        yield from itertools.batched([name for name in room.__all__ if wide[name] == kind], PER_OBJECTIVE)


CASES = [(room, names) for room in (losses, gates) for names in groups(room)]


def failures(findings):
    return [f"{finding.name}: {finding.detail}" for finding in findings if finding.passed is False]


@pytest.mark.parametrize(
    ("room", "names"), CASES, ids=lambda value: "-".join(value) if isinstance(value, tuple) else ""
)
def test_battery(room, names):
    if not (failed := failures(check.check_objective(objective(room, names), num_examples=8))):
        return
    alone = {name: failures(check.check_objective(objective(room, (name,)), num_examples=25)) for name in names}
    pytest.fail("\n".join(f"{name}: {line}" for name, lines in {**alone, "together": failed}.items() for line in lines))


def test_two_train_steps_with_everything_at_once():
    parts = [objective(room, tuple(room.__all__)) for room in (losses, gates)]
    terms = {name: term for part in parts for name, term in part.terms.items()}
    fields = {field for part in parts for field in part.fields}
    whole = Objective(terms, memory=MEMORY, fields=tuple(sorted(fields))).with_teachers(TEACHERS)
    params = make_params()
    axes = {name: (None,) * leaf.ndim for name, leaf in params.items()}
    table = Student(lambda key: params, hidden, lambda params: params["unembed"], axes, VOCABULARY)
    optimizer = make_optimizer(OptimizerConfig(warmup=0.0), axes, Budget(2, "train_steps"))
    step = jax.jit(make_train_step(table, whole, optimizer), compiler_options={"xla_backend_optimization_level": 0})
    batch = arrange(make_traces(whole.fields, params), alone())
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), initial_memory([whole]))
    for _ in range(2):
        state, tallies = step(state, batch)
        assert float(tallies["optimizer/skipped"].sum) == 0
        assert complaints(tallies) == []
    assert int(state.memory["baseline"]["num_updates"].max()) == 2
    assert all((np.asarray(state.params[name]) != params[name]).any() for name in ("embed", "place", "unembed"))


def test_the_cases_are_all_there_is():
    for room in (losses, gates):
        functions = {name for name, value in vars(room).items() if inspect.isfunction(value)}
        assert functions == set(room.__all__)
        assert sorted(name for r, names in CASES if r is room for name in names) == sorted(functions)


def test_the_table_of_methods_has_every_one():
    table = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text()
    missing = [name for room in (losses, gates, routers) for name in room.__all__ if f"`{name}`" not in table]
    assert not missing


def test_one_loss_that_fails_among_others_is_found():
    def half(label_logprob):
        return -label_logprob.astype(jnp.bfloat16)

    mixed = Objective({"good": Term(cross_entropy), "bad": Term(half)})
    assert any("half is bfloat16" in line for line in failures(check.check_objective(mixed, num_examples=1)))
