"""The second world: what teachers do to a student where out-of-distribution accuracy is far above chance.

    python -m experiments.walk [--seeds 0] [--arms F FK pooled gated] [--out .]

Problems are walks in a line graph (chance 1 in 8). F and K write the same walk in words that look alike, but the states
of K are the inverses of F's; H is cautious, T leaves out every second state, N writes states in other signs. All
students see the same number of completion tokens and are measured on problems like those of training ("test"), on
longer walks ("long") and on graphs with more edges beside the walk ("clutter"):

    F, K, H, ...   that teacher alone
    FK, ...        a pair, in equal shares of traces
    pooled         F, K, H, T and N
    gated          F alone for 45 % of the tokens; then all five, and a trace is refused if its least likely content
                   token costs the student more than 3 nats; what is refused is drawn from teachers that are accepted

The gate needs the anchor F, which is given to it here. About a minute of CPU a student.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from mixdistill.evaluation.intervals import accuracy
from mixdistill.studies.crew import Crew, Job, Report
from mixdistill.traces.worlds.walk import WALK
from mixdistill.traces.worlds.write import write_world

POOL = ("F", "K", "H", "T", "N")
ANCHOR, ANCHOR_SHARE = "F", 0.45
ARMS = ("F", "FK", "pooled", "gated")
SPLITS = {"test": 300, "long": 300, "clutter": 200}  # problems
PROBLEMS_SEED = 99
MAX_NEW = 48  # tokens of an answer; the longest trace has 35


class Size(NamedTuple):
    """How large everything is; tests make it small."""

    traces: int = 8_000  # of each teacher
    tokens: int = 343_000  # completion tokens that a student sees
    rows: int = 22  # of a batch, about 48 traces
    length: int = 64
    problems: float = 1.0  # share of SPLITS
    workers: int = 2


class Result(NamedTuple):
    """One trained student."""

    arm: str
    correct: dict[str, np.ndarray]  # split -> bool [problems]
    seen: int  # completion tokens
    trained: int  # of these, kept by the gate
    kept: dict[str, float]  # each teacher's share of the tokens in the last tenth of the run that the gate kept


def recipe(shards: Path, arm: str, seed: int, size: Size):
    """For a student of 104 thousand parameters, without position encoding but with a convolution over three tokens."""
    from mixdistill.data.mixture import Mixture
    from mixdistill.gates import worst_token
    from mixdistill.losses import cross_entropy
    from mixdistill.objective import Objective, Term
    from mixdistill.optimizers import OptimizerConfig
    from mixdistill.recipe import Recipe, Stage
    from mixdistill.routers import acceptance
    from mixdistill.students.families import walk

    def source(teachers: Sequence[str]) -> Mixture:
        return Mixture(
            shards=str(shards), rows=size.rows, length=size.length, teachers=tuple(teachers), unit="traces", seed=seed
        )

    imitate = Objective({"imitate": Term(cross_entropy)})
    gated = Objective({"imitate": Term(cross_entropy, gates=(worst_token,))}, memory={"acceptance": acceptance()})
    if arm == "gated":
        first = round(ANCHOR_SHARE * size.tokens)
        stages = (
            Stage("anchor", None, source(ANCHOR), imitate, num_tokens=first),
            Stage("gated", None, source(POOL), gated, num_tokens=size.tokens - first),
        )
    else:
        stages = (Stage("imitate", None, source(POOL if arm == "pooled" else arm), imitate, num_tokens=size.tokens),)
    return Recipe(
        name=f"walk_{arm}",
        student=walk(WALK.tokenizer().vocab_size),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup=0.09, final=0.1, b2=0.98, weight_decay=0.01, clip=1.0),
        stages=stages,
        seed=seed,
        log_every=20,
        checkpoint_every=1_000_000,  # only the last
    )


def write(folder: Path, seed: int, teachers: tuple[str, ...], size: Size, report: Report) -> None:
    """The teachers' traces of one seed."""
    write_world(WALK, folder / f"shards-{seed}", dict.fromkeys(teachers, size.traces), seed=seed, overwrite=True)


def train(folder: Path, arm: str, seed: int, size: Size, report: Report) -> Result:
    """One student, measured on every split."""
    from experiments import students
    from mixdistill.evaluation.tasks import world_task

    workdir = folder / f"{arm}-{seed}"
    trained = students.train(recipe(folder / f"shards-{seed}", arm, seed, size), workdir, report)
    lines, correct = students.metrics(workdir), {}
    for split, count in SPLITS.items():
        task = world_task(WALK, split, max(round(count * size.problems), 1), seed=PROBLEMS_SEED)
        correct[split] = students.solves(trained.student, trained.params, task, WALK.tokenizer(), MAX_NEW)
    kept = students.kept_tokens(lines)
    return Result(arm, correct, trained.tokens, kept, students.kept_shares(lines[-max(len(lines) // 10, 1) :]))


def table(results: Sequence[Result], arms: Sequence[str]) -> Table:
    """A line an arm; intervals over problems and seeds."""
    shown = Table("", box=box.SIMPLE_HEAD, title="held-out problems of the walk world, exact answers")
    for title in (*SPLITS, "tokens seen", "trained on", "kept at the end"):
        shown.add_column(title, justify="right")
    for arm in arms:
        of_arm = [result for result in results if result.arm == arm]
        cells = [str(accuracy(np.stack([result.correct[split] for result in of_arm]))) for split in SPLITS]
        seen, trained = (round(float(np.mean(x))) for x in ([r.seen for r in of_arm], [r.trained for r in of_arm]))
        kept = {name: np.mean([result.kept.get(name, 0) for result in of_arm]) for name in of_arm[0].kept}
        last = " ".join(f"{name} {share:.2f}" for name, share in kept.items() if share >= 0.005)
        shown.add_row(arm, *cells, f"{seen:,}", f"{trained:,}", last)
    return shown


def main(arguments: Sequence[str] | None = None, size: Size = Size()) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.walk", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", default=ARMS, help="teachers' letters, pooled, gated")
    parser.add_argument("--out", type=Path, default=Path())
    given = parser.parse_args(arguments)
    for arm in given.arms:
        if arm not in ("pooled", "gated") and not set(arm) <= set(WALK.teachers):
            parser.error(f"unknown arm {arm!r}; known: pooled, gated, and letters of {', '.join(WALK.teachers)}")
    folder = given.out / "runs" / "walk"
    folder.mkdir(parents=True, exist_ok=True)
    alone = {letter for arm in given.arms if arm not in ("pooled", "gated") for letter in arm}
    teachers = tuple(name for name in WALK.teachers if name in {*POOL, *alone})
    pairs = [(arm, seed) for arm in given.arms for seed in given.seeds]
    try:
        with Crew(size.workers, len(given.seeds) + len(pairs), compiled=folder / "compiled") as crew:
            crew.do([Job(f"traces of seed {seed}", write, (folder, seed, teachers, size)) for seed in given.seeds])
            results = crew.do([Job(f"{arm}, seed {seed}", train, (folder, arm, seed, size)) for arm, seed in pairs])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    Console(width=130).print(table(results, given.arms))
    return 0


if __name__ == "__main__":
    sys.exit(main())
