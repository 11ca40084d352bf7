"""What `inspect` trains on request: pilots of the student. Tells what they cost, before and after the first."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixdistill.commands.students import Opened
    from mixdistill.traces.shards import Shards
    from mixdistill.training.pilots import Plan


MOST_ANCHORS = 12  # of --pairwise: as many pilots, and 132 classifiers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to train, and how much."""
    group = parser.add_argument_group("pilots of the student", "short trainings, in memory; each tells what it costs")
    group.add_argument(
        "--second-opinion",
        action="store_true",
        help="on undecidable disagreement: two pilots a teacher, one of them told who writes",
    )
    group.add_argument(
        "--pilot",
        nargs="*",
        metavar="TEACHER",
        help="a table of mixes: these teachers (default: all) alone, by twos and together",
    )
    group.add_argument(
        "--pairwise",
        nargs="*",
        metavar="TEACHER",
        help="undecidable disagreement of each of these teachers (default: all) with every other: one pilot each",
    )
    group.add_argument("--pilot-tokens", type=int, default=80_000, help="targets of a pilot (default: %(default)s)")
    group.add_argument(
        "--pilot-learning-rate", type=float, help="at its peak (default: that of the student's run, else 0.001)"
    )


def pilot_plan(args: argparse.Namespace) -> "Plan":
    """Raises `UserError` for what is not positive."""
    from mixdistill.recipe.read import read_value
    from mixdistill.training.pilots import Plan

    recipe, rate = Path(args.student) / "recipe.txt", args.pilot_learning_rate
    if rate is None and recipe.is_file():
        rate = read_value(recipe.read_text(encoding="utf-8"), "optimizer.learning_rate")
    return Plan(tokens=args.pilot_tokens, **({} if rate is None else {"learning_rate": rate}))


def check_pilots(args: argparse.Namespace, shards: "Shards") -> None:
    """Before anything is computed. Raises `UserError` for teachers that are unknown or too many."""
    from mixdistill.training.pilot_mix import check_teachers

    if args.pilot is not None:
        check_teachers(shards, args.pilot)
    if args.pairwise is not None:
        _check_pairwise(shards, args.pairwise)


def pairwise(shards: "Shards", opened: "Opened", teachers: Iterable[str], plan: "Plan") -> dict[str, Any]:
    """What `--pairwise` adds: "pairs" (matrices) and "pairwise" (a row an anchor)."""
    from mixdistill.training.pairwise import matrices, rows, table

    chosen = _check_pairwise(shards, list(teachers))
    made = rows(shards, opened.student, opened.params, chosen, plan)
    found = list(_told(made, len(chosen), plan.tokens, lambda row: f"{row.anchor} as the anchor"))
    return {"pairs": matrices(found, shards.teachers), "pairwise": table(found)}


def _check_pairwise(shards: "Shards", teachers: list[str]) -> tuple[str, ...]:
    from mixdistill.errors import UserError, unknown

    for name in teachers:
        if name not in shards.teachers:
            raise unknown("teacher", name, shards.teachers)
    chosen = tuple(dict.fromkeys(teachers)) or shards.teachers
    if not 2 <= len(chosen) <= MOST_ANCHORS:
        raise UserError(
            f"--pairwise has {len(chosen)} teachers, each of which trains a pilot; name 2 to {MOST_ANCHORS} of them"
        )
    return chosen


def mix_table(shards: "Shards", opened: "Opened", teachers: Iterable[str], plan: "Plan") -> list[dict[str, Any]]:
    """The pilot-mix table."""
    from mixdistill.training.pilot_mix import check_teachers, mixes, pilot_mix, table

    chosen = check_teachers(shards, list(teachers))
    made = pilot_mix(shards, opened.student, opened.params, chosen, plan)
    told = _told(made, len(mixes(chosen)), plan.tokens, lambda pilot: " + ".join(pilot.teachers))
    return table(list(told))


def add_second_opinions(rows: Mapping[str, dict[str, Any]], shards: "Shards", opened: "Opened", plan: "Plan") -> None:
    """To every teacher of whom undecidable disagreement is known."""
    from mixdistill.evaluation.disagreement import add_second_opinion
    from mixdistill.training.second_opinion import second_opinions

    torn = {name: row["undecidable"] for name, row in rows.items() if row["undecidable"]}
    if not torn:
        print("no second opinion: there is no first one", file=sys.stderr)
        return
    anchor = next(iter(torn.values()))["anchor"]
    made = second_opinions(shards, opened.student, opened.params, anchor, list(torn), plan)
    for name, opinion in _told(made, len(torn), 2 * plan.tokens, lambda pair: f"{pair[0]}, tagged and not"):
        add_second_opinion(torn[name], opinion)


def _told[T](made: Iterable[T], count: int, tokens: int, name) -> Iterator[T]:
    """`made`, with a line on stderr for each: the cost in all first, then the time of each and of those to come."""
    import time

    print(f"pilots: {count} times {tokens:,} tokens", file=sys.stderr, flush=True)
    last = time.perf_counter()
    for n, one in enumerate(made, start=1):
        now = time.perf_counter()
        left = f", {count - n} to go: about {(count - n) * (now - last):.0f} s" if n < count else ""
        print(f"pilot {n} of {count}: {name(one)}, {now - last:.1f} s{left}", file=sys.stderr, flush=True)
        yield one
        last = time.perf_counter()
