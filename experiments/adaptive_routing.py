"""Open question 1: can shares that follow the student remove the cost of heterogeneity?

In the chain world, five teachers of complementary coverage poured together are worse than one of them alone. Here the
routers of `mixdistill.routers` move the shares while the student learns: by confidence (learning progress, a bandit,
excess loss, the frontier check, the worst-token gate with refill), or by a distance between teachers (undecidable
disagreement with an anchor). Every student sees as many completion tokens; references and anchors are counted.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import arms, students
from mixdistill.data.corpus import open_corpus, weight_vector
from mixdistill.data.mixture import Scores
from mixdistill.evaluation.tasks import Task, world_task
from mixdistill.gates import worst_token
from mixdistill.generation.scoring import fingerprint_of, score
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.recipe import Recipe, Stage
from mixdistill.routers import acceptance, doremi, exponentiated_gradient, frontier, learning_progress
from mixdistill.signals.agreement import excess_loss
from mixdistill.students.decoder import make_student
from mixdistill.students.families import chain
from mixdistill.studies.crew import Report
from mixdistill.studies.publish import signed
from mixdistill.studies.results import Results
from mixdistill.studies.study import Cell, Comparison, Measure, Row, Study, Verdict
from mixdistill.traces.shards import Shards
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world
from mixdistill.training.admission import disagreements
from mixdistill.training.hooks import Event

COVERAGE = {"F": (3, 4), "H": (4, 5), "B": (4, 5), "M": (4, 5), "S": (3, 4, 5)}  # teacher -> operands
ANCHOR, COMPATIBLE, SINGLES = "F", ("F", "H"), ("F", "H")
ANCHOR_SHARE, REFERENCE_SHARE, CHECK_AT = 0.45, 0.25, 0.3  # of the tokens
ROUTERS = ("learning progress", "bandit", "excess loss", "frontier check", "gate with refill", "disagreement")
PROBLEMS_SEED = 910  # test and validation problems are the same for all students
MAX_NEW = 24
CLOSE = 0.1  # accuracy


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is."""

    traces: int = 6_000  # of each teacher
    tokens: int = 400_000  # completion tokens that a student sees
    test: int = 500  # problems
    validation: int = 100


def prepare(seed: int, size: Size, folder: Path, report: Report) -> None:
    """Shards with the coverage above."""
    write_world(CHAIN, folder / "shards", dict.fromkeys(COVERAGE, size.traces), seed=seed, coverage=COVERAGE)


def run(cell: Cell) -> Row:
    """One student."""
    row = arms.trained_row(cell, _plan(cell), _tasks(cell.size), MAX_NEW)
    lines = students.metrics(cell.folder / "run")
    shares = {f"share {name}": share for name, share in students.shares(lines[-1]).items()}
    fitting = sum(shares.get(f"share {name}", 0.0) for name in COMPATIBLE)
    validation = sum(row.outcomes["validation"]) / len(row.outcomes["validation"])
    numbers = {**row.numbers, **shares, "fitting": fitting, "validation": validation}
    spent = {name: row.spent[name] + more for name, more in _reference_cost(cell).items()}
    return row._replace(outcomes={"test": row.outcomes["test"]}, numbers=numbers, spent=spent)


def _tasks(size: Size) -> dict[str, Task]:
    return {
        "test": world_task(CHAIN, "test", size.test, seed=PROBLEMS_SEED),
        "validation": world_task(CHAIN, "validation", size.validation, seed=PROBLEMS_SEED),
    }


def _plan(cell: Cell) -> Recipe:
    tokens, memory = cell.size.tokens, _memory(cell)
    if cell.arm in SINGLES:
        return _recipe(cell, [_imitate(cell, [cell.arm], tokens)])
    if cell.arm == "compatible pair":
        return _recipe(cell, [_imitate(cell, COMPATIBLE, tokens)])
    if cell.arm == "gate with refill":
        gated = Objective({"imitate": Term(cross_entropy, gates=(worst_token,))}, memory=memory)
        return _recipe(cell, _around_anchor(cell, tuple(COVERAGE), gated))
    if cell.arm == "disagreement":
        return _recipe(cell, _around_anchor(cell, _undisputed(cell)))
    if cell.arm == "excess loss":
        return _recipe(cell, [_behind_reference(cell, memory)])
    pooled = _imitate(cell, tuple(COVERAGE), tokens)
    objective = dataclasses.replace(pooled.objective, memory=memory) if memory else pooled.objective
    return _recipe(cell, [dataclasses.replace(pooled, objective=objective)])


def _memory(cell: Cell) -> dict[str, Any]:
    """The router of an arm."""
    if cell.arm == "learning progress":
        return {"router": learning_progress()}
    if cell.arm == "bandit":
        return {"router": exponentiated_gradient(tally="teacher/content_nll", reward="fall")}
    if cell.arm == "excess loss":
        return {"router": doremi()}
    if cell.arm == "gate with refill":
        return {"router": acceptance()}
    if cell.arm == "frontier check":
        source = _imitate(cell, tuple(COVERAGE), cell.size.tokens).source
        shares = tuple(weight_vector(open_corpus(source), source).tolist())
        return {"router": frontier(shares=shares, check_at=round(CHECK_AT * cell.size.tokens))}
    return {}


def _imitate(cell: Cell, teachers: Sequence[str], tokens: int) -> Any:
    return arms.imitate(cell.data / "shards", tokens, teachers, seed=cell.seed)


def _recipe(cell: Cell, stages: Sequence[Stage]) -> Recipe:
    return arms.recipe(cell.arm, chain(CHAIN.tokenizer().vocab_size), stages, cell.seed)


def _around_anchor(cell: Cell, teachers: Sequence[str], objective: Objective | None = None) -> list[Stage]:
    """The anchor first; then these teachers."""
    first = round(ANCHOR_SHARE * cell.size.tokens)
    second = _imitate(cell, teachers, cell.size.tokens - first)
    second = dataclasses.replace(second, name="others", objective=objective or second.objective)
    return [dataclasses.replace(_imitate(cell, [ANCHOR], first), name="anchor"), second]


class Learned(Exception):
    """The anchor has been learned: its student's parameters."""


def _undisputed(cell: Cell) -> tuple[str, ...]:
    """The teachers without undecidable disagreement with the anchor, when the anchor's stage is over. The run that is
    broken off here begins as the one that follows does, so its tokens are counted there."""

    def stop(event: Event) -> None:
        if event.kind == "train_step" and event.tokens >= round(ANCHOR_SHARE * cell.size.tokens):
            raise Learned(event.state.params)

    plan, shards = _recipe(cell, _around_anchor(cell, [ANCHOR])), Shards.open(cell.data / "shards")
    try:
        students.train(plan, cell.folder / "anchor", cell.report, [stop])
    except Learned as found:
        params = found.args[0]
    else:
        raise AssertionError("the anchor's stage has no end")
    student = make_student(plan.student)
    rows = disagreements(student, params, shards, ANCHOR, seed=cell.seed)
    return tuple(name for name in COVERAGE if name == ANCHOR or rows[name].conflicts() is False)


def _behind_reference(cell: Cell, memory: dict[str, Any]) -> Stage:
    """All teachers, by how far the student is behind a reference that has seen all of them in equal parts."""
    tokens, shards = round(REFERENCE_SHARE * cell.size.tokens), cell.data / "shards"
    reference = students.train(
        _recipe(cell, [_imitate(cell, tuple(COVERAGE), tokens)]), cell.folder / "reference", cell.report
    )
    ledger = cell.folder / "ledger"
    mark = fingerprint_of(reference.student, reference.params)
    score(Shards.open(shards), reference.student, reference.params, ledger, fingerprint=mark)
    stage = _imitate(cell, tuple(COVERAGE), cell.size.tokens - tokens)
    source = dataclasses.replace(stage.source, fields={"reference_logprob": Scores(sidecar=str(ledger))})
    terms = {"imitate": Term(cross_entropy)}
    objective = Objective(terms, memory=memory, watch=(excess_loss,), fields=("reference_logprob",))
    return dataclasses.replace(stage, source=source, objective=objective)


def _reference_cost(cell: Cell) -> dict[str, float]:
    """What an arm has spent beside its run; of a reference, whose traces are scored too, the training alone."""
    folder = cell.folder / "reference"
    names = ("tokens seen", "tokens trained", "flops")
    return arms.spent(folder) if folder.is_dir() else dict.fromkeys(names, 0.0)


def derive(rows: Sequence[Row]) -> list[Row]:
    """The better of the two single teachers, chosen on validation problems."""
    found = []
    for seed in sorted({row.seed for row in rows}):
        singles = [row for row in rows if row.seed == seed and row.arm in SINGLES]
        if len(singles) == len(SINGLES):
            found.append(max(singles, key=lambda row: row.numbers["validation"])._replace(arm="best single"))
    return found


def verdict(results: Results) -> Verdict:
    """From the differences of the table. A router removes the cost if it is above the best single teacher and at most
    0.1 below the compatible pair; it repairs if it is above pooling and not below the best single teacher."""
    gains = {name: results.difference(name, "best single", "test") for name in ROUTERS}
    against = {name: results.difference(name, "pooled", "test") for name in ROUTERS}
    missing = {name: results.difference(name, "compatible pair", "test") for name in ROUTERS}
    unknown = [name for name in (*ROUTERS, "best single", "pooled", "compatible pair") if not results.seeds(name)]
    if unknown:
        return Verdict("not testable at this scale", f"Not run yet: {', '.join(unknown)}.")
    won = [name for name in ROUTERS if gains[name].low > 0]
    full = [name for name in won if missing[name].low > -CLOSE]
    repaired = [name for name in ROUTERS if name not in won and against[name].low > 0 and gains[name].high >= 0]
    failed = [name for name in ROUTERS if name not in (*won, *repaired)]
    cost = results.difference("pooled", "best single", "test")
    oracle = results.difference("compatible pair", "best single", "test")
    words = (
        f"Pooling costs {signed(cost)} against the best single teacher; of six routers "
        f"{_listed(won, gains) or 'none'} {'beats' if len(won) == 1 else 'beat'} it."
    )
    more = (
        f"The compatible pair, known beforehand, is {signed(oracle)} against the best single teacher"
        f"{'; at most 0.1 below that pair: ' + ', '.join(full) if full else ''}. "
        f"Above pooling, but no better than one teacher: {_listed(repaired, gains) or 'none'}. "
        f"Neither: {_listed(failed, gains) or 'none'} (differences to the best single teacher)."
    )
    few = [name for name in ROUTERS if len(results.seeds(name)) < 3]
    if few:
        return Verdict("not testable at this scale", f"Not finished, too few seeds of {', '.join(few)}. {words}", more)
    if full:
        return Verdict("holds" if len(won) == len(ROUTERS) else "holds in part", words, more)
    return Verdict("holds in part" if won or repaired else "overturned", words, more)


def _listed(names: Sequence[str], gains: dict[str, Any]) -> str:
    return ", ".join(f"{name} ({signed(gains[name])})" for name in names)


def study() -> Study:
    """Open question 1."""
    about = {
        **{name: f"teacher {name} alone, {' '.join(map(str, COVERAGE[name]))} operands" for name in SINGLES},
        "pooled": "all five, mixed by what there is of each",
        "compatible pair": "F and H from the start: the oracle, and what `admit` finds in the traces",
        "learning progress": "shares by the fall of each teacher's content NLL since train step 40",
        "bandit": "exponentiated gradient, rewarded by the fall of content NLL",
        "excess loss": "DoReMi's rule, against a reference that saw all five for a quarter of the tokens",
        "frontier check": "pooled; once, at 30 %, teachers without headway are dropped",
        "gate with refill": f"F for {ANCHOR_SHARE:.0%} of the tokens, then all behind the worst-token gate with refill",
        "disagreement": f"F for {ANCHOR_SHARE:.0%}, then those without undecidable disagreement with it",
    }
    tested = [("pooled", "best single"), ("compatible pair", "best single")]
    tested += [(name, other) for other in ("best single", "pooled", "compatible pair") for name in ROUTERS]
    return Study(
        name="adaptive_routing",
        question="Can routing by confidence or by distance between teachers remove the cost of heterogeneity?",
        expected=(
            "open; for routing speak DoReMi (+6.5 points of few-shot accuracy over the Pile's own weights, "
            "2305.10429; figure not verified) and per-problem selection by rank-surprisal, which beats the best single "
            "teacher for 4 of 5 students (2601.14249); against it, that easy classes become hard to learn "
            "from two right but different thinkers (2604.24737)"
        ),
        decides="whether a router is a default, or selection before training stays the default",
        sources=("2305.10429", "2601.14249", "2604.24737"),
        arms=about,
        seeds=(0, 1, 2, 3, 4),
        size=Size(),
        tiny=Size(traces=200, tokens=1_500, test=8, validation=8),
        run=run,
        prepare=prepare,
        measures=[
            Measure("test", "accuracy"),
            Measure("test valid", "valid"),
            Measure("test calibration error", "calibration error"),
            Measure("fitting", "share of F and H at the end"),
            *(Measure(f"test error {kind}", kind) for kind in ("order", "side", "arithmetic")),
        ],
        comparisons=[Comparison(one, other, "test") for one, other in tested],
        verdict=verdict,
        derive=derive,
        notes=(
            "\nBest single: the better of F and H on validation problems; the other three were no better in any "
            "earlier run. The anchor F is given."
        ),
    )
