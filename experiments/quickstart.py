"""The main job in small: traces of five teachers of the chain world, three students at one token budget.

    make quickstart            python -m experiments.quickstart [--seeds 10 11 12] [--out .]

Coverage is complementary: teacher F has traces for problems of 3 and 4 operands, H, B and M for 4 and 5, S (too terse
for this student) for all. F and H write compatible traces; nobody tells mixdistill. Every student sees the same number
of completion tokens:

    best single   the teacher whose student solves most validation problems: all five are trained with the first seed,
                  the best of them with every other
    pooled        all five, mixed by what there is of each
    mixdistill    the group that `admit` chooses by continuation conflict and coverage, with the frontier check

Shards, runs and checkpoints go to OUT/runs/quickstart, quickstart.json and quickstart.png to OUT. About four
minutes on two cores.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.quickstart_picture import draw
from mixdistill.evaluation.intervals import accuracy
from mixdistill.studies.crew import Crew, Job, Report
from mixdistill.traces.shards import Shards
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world

COVERAGE = {"F": (3, 4), "H": (4, 5), "B": (4, 5), "M": (4, 5), "S": (3, 4, 5)}  # teacher -> operands
SEEDS = (10, 11, 12)
PROBLEMS_SEED = 900  # test and validation problems are the same for all students
MAX_NEW = 24  # tokens of an answer; the longest trace has 18


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is; tests make it small."""

    traces: int = 12_000  # of each teacher
    tokens: int = 400_000  # completion tokens that a student sees
    rows: int = 16  # of a batch; traces are packed, about 64 a batch
    length: int = 64
    test: int = 500  # problems
    validation: int = 200
    curve: int = 10  # times that the first seed's students are measured while they train
    curve_problems: int = 64
    workers: int = 2  # processes


class Result(NamedTuple):
    """One trained student."""

    arm: str  # a teacher's name, "pooled" or "mixdistill"
    seed: int
    correct: np.ndarray  # bool [test problems]
    validation: float  # accuracy
    seen: int  # completion tokens
    trained: int  # of these, kept by gates
    seconds: float  # training, and admission where there was one
    curve: list[tuple[int, float]]  # (train step, validation accuracy)
    shares: list[tuple[int, dict[str, float]]]  # (train step, share of each teacher in the tokens seen)
    admission: Any = None


class Arm(NamedTuple):
    """One student a seed."""

    name: str
    results: list[Result]

    @property
    def row(self) -> dict[str, float]:
        """What quickstart.json holds of it; tokens and seconds are means over the seeds."""
        mean, low, high = accuracy(np.stack([result.correct for result in self.results]))
        means = np.mean([(r.seen, r.trained, r.seconds) for r in self.results], axis=0)
        return {
            "accuracy": mean,
            "low": low,
            "high": high,
            "tokens_seen": round(means[0]),
            "tokens_trained": round(means[1]),
            "seconds": round(means[2], 1),
        }


def recipe(shards: Path, seed: int, size: Size, teachers: tuple[str, ...] | None = None):
    """Cross entropy on these teachers (None: all), for a student of 102 thousand parameters."""
    from mixdistill.data.mixture import Mixture
    from mixdistill.losses import cross_entropy
    from mixdistill.objective import Objective, Term
    from mixdistill.optimizers import OptimizerConfig
    from mixdistill.recipe import Recipe, Stage
    from mixdistill.students.families import chain

    source = Mixture(shards=str(shards), rows=size.rows, length=size.length, teachers=teachers, seed=seed)
    imitate = Objective({"imitate": Term(cross_entropy)})
    return Recipe(
        name="quickstart",
        student=chain(CHAIN.tokenizer().vocab_size),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup=0.08, final=0.1, b2=0.98, weight_decay=0.01, clip=1.0),
        stages=(Stage("imitate", None, source, imitate, num_tokens=size.tokens),),
        seed=seed,
        log_every=20,
        checkpoint_every=1_000_000,  # only the last
    )


def write(folder: Path, seed: int, size: Size, report: Report) -> None:
    """The teachers' traces of one seed."""
    counts = dict.fromkeys(COVERAGE, size.traces)
    write_world(CHAIN, folder / f"shards-{seed}", counts, seed=seed, coverage=COVERAGE, overwrite=True)


def train(folder: Path, arm: str, seed: int, size: Size, with_curve: bool, report: Report) -> Result:
    """One student, by the whole road: shards, pipeline, recipe, loop, checkpoint, evaluation."""
    from experiments import students
    from mixdistill.evaluation.tasks import world_task
    from mixdistill.training.admission import admit, admitted

    shards, workdir, tokenizer = folder / f"shards-{seed}", folder / f"{arm}-{seed}", CHAIN.tokenizer()
    validation = world_task(CHAIN, "validation", size.validation, seed=PROBLEMS_SEED)
    began, admission = time.perf_counter(), None
    plan = recipe(shards, seed, size, (arm,) if arm in COVERAGE else None)
    if arm == "mixdistill":
        admission = admit(Shards.open(shards), [problem.prompt for problem in validation.problems], seed=seed)
        plan = admitted(plan, admission)
    some = validation._replace(problems=validation.problems[: size.curve_problems])
    curve = students.Curve(plan.build_student(), some, tokenizer, MAX_NEW, size.tokens, size.curve)
    trained = students.train(plan, workdir, report, [curve] if with_curve else [])
    seconds, lines = time.perf_counter() - began - curve.seconds, students.metrics(workdir)
    test = world_task(CHAIN, "test", size.test, seed=PROBLEMS_SEED)
    return Result(
        arm,
        seed,
        students.solves(trained.student, trained.params, test, tokenizer, MAX_NEW),
        float(students.solves(trained.student, trained.params, validation, tokenizer, MAX_NEW).mean()),
        trained.tokens,
        students.kept_tokens(lines),
        seconds,
        curve.points,
        [(line["train_step"], students.shares(line)) for line in lines],
        admission,
    )


def study(seeds: Sequence[int], folder: Path, size: Size) -> tuple[list[Arm], list[Result]]:
    """The three arms, and every teacher alone with the first seed."""
    total = len(COVERAGE) + 4 * len(seeds) - 1
    with Crew(size.workers, total, compiled=folder / "compiled") as crew:
        crew.do([Job(f"traces of seed {seed}", write, (folder, seed, size)) for seed in seeds])

        def students(pairs: Sequence[tuple[str, int]]) -> list[Result]:
            """(arm, seed) -> a trained student; curves are drawn with the first seed."""
            return crew.do(
                [Job(f"{arm}, seed {seed}", train, (folder, arm, seed, size, seed == seeds[0])) for arm, seed in pairs]
            )

        first = students(
            [(teacher, seeds[0]) for teacher in COVERAGE]
            + [(arm, seed) for seed in seeds for arm in ("pooled", "mixdistill")]
        )
        singles, mixtures = first[: len(COVERAGE)], first[len(COVERAGE) :]
        best = max(singles, key=lambda result: result.validation)
        rest = students([(best.arm, seed) for seed in seeds[1:]])
    arms = [Arm("best_single", [best, *rest])]
    arms += [Arm(name, [r for r in mixtures if r.arm == name]) for name in ("pooled", "mixdistill")]
    return arms, singles


def table(arms: Sequence[Arm]) -> Table:
    """What the quickstart is about."""
    shown = Table("", box=box.SIMPLE_HEAD, title="held-out problems of the chain world, exact answers")
    for title in ("accuracy", "95 % interval", "tokens seen", "trained on", "seconds"):
        shown.add_column(title, justify="right")
    for arm in arms:
        row = arm.row
        shown.add_row(
            arm.name.replace("_", " "),
            f"{row['accuracy']:.3f}",
            f"{row['low']:.3f} .. {row['high']:.3f}",
            f"{row['tokens_seen']:,}",
            f"{row['tokens_trained']:,}",
            f"{row['seconds']:.0f}",
        )
    return shown


def words(arms: Sequence[Arm], singles: Sequence[Result]) -> list[str]:
    """Which teachers were kept apart and why, and what stands behind "best single"."""
    from mixdistill.training.admission import reason

    admissions = [result.admission for result in arms[-1].results]
    groups = sorted({" + ".join(admission.teachers) for admission in admissions})
    between = admissions[0].conflict.between
    alone = ", ".join(f"{result.arm} {result.correct.mean():.3f}" for result in singles)
    return [
        reason(admissions[0]),
        f"Conflict in bits: F-B {between('F', 'B'):.2f}, F-H {between('F', 'H'):.2f}.",
        *([f"The group was not the same with every seed: {'; '.join(groups)}."] if len(groups) > 1 else []),
        f"Teachers alone, seed {singles[0].seed}: {alone}. Best single: {arms[0].results[0].arm}.",
    ]


def broken(arms: Sequence[Arm]) -> list[str]:
    """What the quickstart promises and these numbers do not show."""
    single, pooled, mixed = (arm.row for arm in arms)
    found = []
    if mixed["low"] <= pooled["high"]:
        found.append("mixdistill and pooled are not apart by their intervals")
    if mixed["accuracy"] < single["accuracy"]:
        found.append("mixdistill is below the best single teacher")
    return found


def main(arguments: Sequence[str] | None = None, size: Size = Size()) -> int:
    """The command; 0 if it shows what it promises, 1 if not, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.quickstart", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="one student of each arm a seed")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of quickstart.json and quickstart.png")
    given = parser.parse_args(arguments)
    folder = given.out / "runs" / "quickstart"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        arms, singles = study(given.seeds, folder, size)
    except KeyboardInterrupt:
        print("interrupted; nothing was written beside the runs", file=sys.stderr)
        return 130
    Console().print(table(arms))
    print(*words(arms, singles), *(f"NOT AS PROMISED: {line}." for line in broken(arms)), sep="\n")
    numbers = {"arms": {arm.name: arm.row for arm in arms}}
    (given.out / "quickstart.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    draw(given.out / "quickstart.png", arms)
    return 1 if broken(arms) else 0


if __name__ == "__main__":
    sys.exit(main())
