"""Undecidable disagreement on the two built-in worlds where it is known which teachers harm each other.

    python -m experiments.undecidable [--seed 4] [--out .]

In either world a student learns teacher F alone; then every other teacher is compared with F: how often the student
confidently contradicts it (disagreement), how well the last six tokens tell who is writing (decodability, of the tokens
that it contradicts), and what is left undecided late in the traces, which is what counts. Known from training students
on pairs: N (another notation) is harmless in both worlds, and so is H in the chain world; B, M, S and C of the chain
world and K, C and W of the walk world harm. H and T of the walk world are in between. About two minutes of CPU.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from mixdistill.diagnostics.undecidable import THRESHOLD, Undecidable
from mixdistill.studies.crew import Crew, Job, Report
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.walk import WALK
from mixdistill.traces.worlds.write import write_world

ANCHOR = "F"
HARMFUL = {"chain": "BMSC", "walk": "KCW"}
HARMLESS = {"chain": "HN", "walk": "N"}
UNCLEAR = {"chain": "", "walk": "HT"}


class Size(NamedTuple):
    """How large everything is; tests make it small."""

    traces: int = 8_000  # of each teacher
    tokens: int = 250_000  # that the anchor's student sees
    workers: int = 2


class Found(NamedTuple):
    """One world."""

    world: str
    anchor_nll: float  # nats a content token
    rows: dict[str, Undecidable]


def measure(folder: Path, name: str, seed: int, size: Size, report: Report) -> Found:
    """Writes the traces, trains the anchor's student, compares."""
    from experiments import students
    from mixdistill.data.mixture import Mixture
    from mixdistill.losses import cross_entropy
    from mixdistill.objective import Objective, Term
    from mixdistill.optimizers import OptimizerConfig
    from mixdistill.recipe import Recipe, Stage
    from mixdistill.students import families
    from mixdistill.training.admission import content_nll, disagreements

    world, family = {"chain": (CHAIN, families.chain), "walk": (WALK, families.walk)}[name]
    teachers = [ANCHOR, *HARMFUL[name], *HARMLESS[name], *UNCLEAR[name]]
    shards = write_world(
        world, folder / f"{name}-{seed}-shards", dict.fromkeys(teachers, size.traces), seed=seed, overwrite=True
    )
    source = Mixture(shards=str(shards.path), rows=16, length=64, teachers=(ANCHOR,), seed=seed)
    imitate = Objective({"imitate": Term(cross_entropy)})
    plan = Recipe(
        name=f"anchor_{name}",
        student=family(world.tokenizer().vocab_size),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup=0.08, final=0.1, b2=0.98, weight_decay=0.01, clip=1.0),
        stages=(Stage("anchor", None, source, imitate, num_tokens=size.tokens),),
        seed=seed,
        log_every=20,
        checkpoint_every=1_000_000,
    )
    trained = students.train(plan, folder / f"{name}-{seed}", report)
    return Found(
        name,
        content_nll(trained.student, trained.params, shards, ANCHOR),
        disagreements(trained.student, trained.params, shards, ANCHOR),
    )


def table(found: Sequence[Found]) -> Table:
    """A line a teacher."""
    shown = Table("world", "teacher", box=box.SIMPLE_HEAD)
    for title in ("disagreement", "decodability", "undecidable", "late"):
        shown.add_column(title, justify="right")
    for title in ("verdict", "known"):
        shown.add_column(title)
    for world, _, rows in found:
        for name, row in rows.items():
            numbers = (row.disagreement, row.decodability, row.undecidable, row.undecidable_late)
            shown.add_row(world, name, *(f"{x:.3f}" for x in numbers), row.verdict, known(world, name))
    return shown


def known(world: str, teacher: str) -> str:
    """What training on the pair with F has shown."""
    if teacher in HARMFUL[world]:
        return "harmful"
    return "harmless" if teacher in HARMLESS[world] else "in between"


def wrong(found: Sequence[Found]) -> list[str]:
    """The verdicts that training contradicts."""
    expected = {"harmful": True, "harmless": False}
    return [
        f"{world} {name}"
        for world, _, rows in found
        for name, row in rows.items()
        if expected.get(known(world, name), row.conflicts()) is not row.conflicts()
    ]


def main(arguments: Sequence[str] | None = None, size: Size = Size()) -> int:
    """The command; 0 if every verdict is as known."""
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m experiments.undecidable", description=description)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path())
    given = parser.parse_args(arguments)
    folder = given.out / "runs" / "undecidable"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with Crew(size.workers, 2, compiled=folder / "compiled") as crew:
            jobs = [Job(f"world {name}", measure, (folder, name, given.seed, size)) for name in HARMFUL]
            found = crew.do(jobs)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    Console(width=110).print(table(found))
    learned = ", ".join(f"{one.world} {one.anchor_nll:.3f}" for one in found)
    print(f"Content NLL of the anchor's students, nats: {learned}. Conflict: late above {THRESHOLD}.")
    print(f"Verdicts that differ from what is known: {', '.join(wrong(found)) or 'none'}.")
    return 1 if wrong(found) else 0


if __name__ == "__main__":
    sys.exit(main())
