"""The headline: which heterogeneity hurts, and when mixing wins. In the chain world, every student with equal tokens.

Pairs: two teachers of all problems, mixed half and half, against one of them alone with all and with half of the
tokens (what dilution alone would cost). Coverage: teachers that have traces for some lengths only, so that a mix can
know more than any of them. Count and size: random teachers of eight, and smaller and larger students.
"""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import arms
from mixdistill.evaluation.tasks import Task, world_task
from mixdistill.gates import worst_token
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.recipe import Recipe, Stage
from mixdistill.routers import acceptance
from mixdistill.students.families import chain
from mixdistill.studies.crew import Report
from mixdistill.studies.publish import signed
from mixdistill.studies.results import Results
from mixdistill.studies.study import Cell, Comparison, Measure, Row, Study, Verdict
from mixdistill.traces.shards import Shards
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world
from mixdistill.training.admission import Admission, admit, admitted

COVERAGE = {"F": (3, 4), "H": (4, 5), "B": (4, 5), "M": (4, 5), "S": (3, 4, 5)}  # teacher -> operands
LENGTHS = (3, 4, 5)  # operands
ALL = ("F", "H", "B", "M", "N", "S", "D", "C")
PAIRS = {"F+H": ("F", "H"), "F+N": ("F", "N"), "F+B": ("F", "B")}
COUNTS = (2, 4, 8)
SIZES = {"small": 32, "large": 96}  # width
MIXES = ("random mix", "selected mix", "gated mix")
PROBLEMS_SEED = 900  # test and validation problems are the same for all students
FIRST = 0.45  # share of the tokens before the gate is there
MAX_NEW = 24


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is."""

    traces: int = 12_000  # of each teacher
    tokens: int = 400_000  # completion tokens that a student sees
    union: int = len(COVERAGE)  # times that, for the arm that has all of everybody
    test: int = 500  # problems
    validation: int = 200


def prepare(seed: int, size: Size, folder: Path, report: Report) -> None:
    """Shards with the coverage above, and shards of all eight teachers on all problems."""
    write_world(CHAIN, folder / "part", dict.fromkeys(COVERAGE, size.traces), seed=seed, coverage=COVERAGE)
    write_world(CHAIN, folder / "all", dict.fromkeys(ALL, size.traces), seed=seed)


def run(cell: Cell) -> Row:
    """One student."""
    tasks = _tasks(cell.size)
    row = arms.trained_row(cell, _plan(cell), tasks, MAX_NEW)
    solved, validation = row.outcomes["test"], row.outcomes["validation"]
    lengths = [problem.difficulty for problem in tasks["test"].problems]
    outcomes = {
        "test": solved,
        **{f"of {n}": [good for good, length in zip(solved, lengths, strict=True) if length == n] for n in LENGTHS},
    }
    return row._replace(outcomes=outcomes, numbers={**row.numbers, "validation": sum(validation) / len(validation)})


def _tasks(size: Size) -> dict[str, Task]:
    return {
        "test": world_task(CHAIN, "test", size.test, seed=PROBLEMS_SEED),
        "validation": world_task(CHAIN, "validation", size.validation, seed=PROBLEMS_SEED),
    }


def _plan(cell: Cell) -> Recipe:
    arm, tokens = cell.arm, cell.size.tokens
    prefix, _, name = arm.rpartition(" student: ")
    student = chain(CHAIN.tokenizer().vocab_size)
    if prefix:
        width = SIZES[prefix]
        student = dataclasses.replace(student, embed=width, head_dim=width // 4, mlp=4 * width)
    part, whole = cell.data / "part", cell.data / "all"

    def of(shards: Path, teachers: Sequence[str], share: float = 1.0) -> Recipe:
        stage = arms.imitate(shards, round(share * tokens), teachers, seed=cell.seed)
        return arms.recipe(arm, student, [stage], cell.seed)

    if name == "F, all problems":
        return of(whole, ["F"])
    if name == "F, all problems, half the tokens":
        return of(whole, ["F"], 0.5)
    if name in PAIRS:
        return of(whole, PAIRS[name])
    if name.endswith("of eight"):
        return _of_eight(cell, of)
    if name == "best single":
        return of(part, [best(list(cell.needs.values()))])
    if name in COVERAGE:
        return of(part, [name])
    if name in ("random mix", "union"):
        return of(part, tuple(COVERAGE), cell.size.union if name == "union" else 1.0)
    found = admission(part, cell)
    pooled = of(part, tuple(COVERAGE))
    return admitted(pooled, found) if name == "selected mix" else gated(pooled, found, tokens)


def _of_eight(cell: Cell, of: Any) -> Recipe:
    """So many teachers, drawn by the seed: all of them, or those that admission keeps."""
    kind, count = cell.arm.split()[0], int(cell.arm.split()[1])
    teachers = random.Random(f"{cell.seed} {count}").sample(ALL, count)
    pooled = of(cell.data / "all", [name for name in ALL if name in teachers])
    if kind == "random":
        return pooled
    found = admission(cell.data / "all", cell)
    group = max(found.groups, key=lambda one: len({*one.teachers} & {*teachers}))
    kept = tuple(name for name in group.teachers if name in teachers)
    return admitted(pooled, dataclasses.replace(found, groups=(group._replace(teachers=kept),)))


def admission(shards: Path, cell: Cell) -> Admission:
    """By continuation conflict and coverage of the validation problems' lengths."""
    prompts = [problem.prompt for problem in _tasks(cell.size)["validation"].problems]
    return admit(Shards.open(shards), prompts, seed=cell.seed)


def gated(pooled: Recipe, found: Admission, tokens: int) -> Recipe:
    """The selected group first; then everybody, behind the worst-token gate, refilled from those whom it accepts."""
    (stage,) = pooled.stages
    first = round(FIRST * tokens)
    alone = dataclasses.replace(stage.source, teachers=found.teachers)
    objective = Objective({"imitate": Term(cross_entropy, gates=(worst_token,))}, memory={"refill": acceptance()})
    stages = (
        dataclasses.replace(stage, name="group", source=alone, num_tokens=first),
        Stage("gated", None, stage.source, objective, num_tokens=tokens - first),
    )
    return dataclasses.replace(pooled, stages=stages)


def best(rows: Sequence[Row]) -> str:
    """The teacher whose student solves most validation problems."""
    return max(rows, key=lambda row: row.numbers["validation"]).arm


def derive(rows: Sequence[Row]) -> list[Row]:
    """The best single teacher, chosen on validation problems, and the mean of the five: its test score is the mean."""
    found = []
    for seed in sorted({row.seed for row in rows}):
        singles = [row for row in rows if row.seed == seed and row.arm in COVERAGE]
        if len(singles) < len(COVERAGE):
            continue
        chosen = next(row for row in singles if row.arm == best(singles))
        names = set.intersection(*(set(row.numbers) for row in singles))
        numbers = {name: sum(row.numbers[name] for row in singles) / len(singles) for name in names}
        share = sum(sum(row.outcomes["test"]) / len(row.outcomes["test"]) for row in singles) / len(singles)
        found += [
            chosen._replace(arm="best single"),
            Row("mean single", seed, {}, {**numbers, "test": share}, chosen.spent),
        ]
    return found


def verdict(results: Results) -> Verdict:
    """From the differences of the table."""
    gain = results.difference("selected mix", "best single", "test")
    gated_gain = results.difference("gated mix", "best single", "test")
    picking = results.difference("mean single", "best single", "test")
    interference = results.difference("random mix", "mean single", "test")
    pooled = results.difference("random mix", "best single", "test")
    clash = results.difference("F+B", "F, all problems, half the tokens", "test")
    tame = results.difference("F+H", "F, all problems, half the tokens", "test")
    by_length = {n: results.difference("selected mix", "best single", f"of {n}") for n in LENGTHS}
    words = (
        "Mixing wins where coverage is complementary and teachers do not conflict: the selected mix is "
        f"{signed(gain)} against the best single teacher, all five poured together {signed(pooled)}."
    )
    more = (
        f"Against the best single teacher, picking an average one costs {signed(picking)}, and interference a further "
        f"{signed(interference)}. The gated mix is {signed(gated_gain)} against the best single. In pairs with the "
        f"same problems, F+B (two orders in the same words) is {signed(clash)} against F at half the tokens, F+H "
        f"(hedged) {signed(tame)}: two valid continuations of the same text hurt, variety of style does not. The "
        f"union, with five times the data and tokens, reaches {results.interval('union', 'test')}. By length, the "
        f"selected mix is {', '.join(f'{signed(one)} with {n} operands' for n, one in by_length.items())} against the "
        "best single teacher, who has traces of two of the three lengths and meets the third out of distribution."
    )
    holds = gain.low > 0 and clash.high < 0
    return Verdict("holds" if holds else "holds in part", words, more)


def study() -> Study:
    """The headline study."""
    about = {
        "F, all problems": "forward teacher, all lengths",
        "F, all problems, half the tokens": "what dilution alone costs",
        **{name: f"teachers {' and '.join(pair)}, all lengths, half and half" for name, pair in PAIRS.items()},
        **{name: f"this teacher alone, {' '.join(map(str, some))} operands" for name, some in COVERAGE.items()},
        "random mix": "all five, mixed by what there is of each",
        "selected mix": "the group that `admit` chooses by conflict and coverage, with the frontier check",
        "gated mix": f"that group for {FIRST:.0%} of the tokens, then all behind the worst-token gate with refill",
        "union": "all five, with five times the tokens",
        **{f"random {n} of eight": f"{n} teachers of eight drawn by the seed, all lengths" for n in COUNTS},
        **{f"selected {n} of eight": "the same, those that admission keeps" for n in COUNTS},
        **{
            f"{size} student: {mix}": f"the same with a student of width {width}"
            for size, width in SIZES.items()
            for mix in ("best single", "random mix", "selected mix")
        },
    }
    tested = [("selected mix", "best single"), ("gated mix", "best single"), ("mean single", "best single")]
    tested += [("random mix", "mean single"), ("random mix", "best single"), ("union", "selected mix")]
    tested += [(pair, "F, all problems, half the tokens") for pair in PAIRS]
    tested += [("F, all problems, half the tokens", "F, all problems")]
    tested += [(f"selected {n} of eight", f"random {n} of eight") for n in COUNTS]
    tested += [
        (f"{s} student: {m}", f"{s} student: best single") for s in SIZES for m in ("random mix", "selected mix")
    ]
    return Study(
        name="mixing",
        question="Which heterogeneity of teachers hurts, and when does mixing win?",
        expected="pooling good teachers gives a worse student than the best one alone; selection repairs it",
        decides="whether the quickstart's default is the selected group, a gate, or everybody",
        sources=("none: the project's own question",),
        arms=about,
        seeds=(10, 11, 12, 13, 14),
        size=Size(),
        tiny=Size(traces=300, tokens=2_000, union=2, test=8, validation=8),
        run=run,
        prepare=prepare,
        measures=[
            Measure("test", "accuracy"),
            *(Measure(f"of {n}", f"{n} operands") for n in LENGTHS),
            Measure("test valid", "valid"),
            Measure("test calibration error", "calibration error"),
            *(Measure(f"test error {kind}", kind) for kind in ("order", "side", "arithmetic", "malformed")),
        ],
        comparisons=[
            *(Comparison(one, other, "test") for one, other in tested),
            *(Comparison(mix, "best single", f"of {n}") for mix in ("selected mix", "gated mix") for n in LENGTHS),
        ],
        verdict=verdict,
        needs={f"{size} student: best single": tuple(COVERAGE) for size in SIZES},
        derive=derive,
        notes="\nA train step holds about 570 completion tokens in every arm: equal tokens are equal train steps.",
    )
