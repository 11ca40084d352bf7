"""`mixdistill sweep STUDY`: run what a study has not run yet, and write its table, plot, page and verdict."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixdistill.errors import UserError

if TYPE_CHECKING:
    from mixdistill.studies.sweep import Sweep


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "study", metavar="STUDY", help="its name in experiments, or module:function or file.py:function"
    )
    parser.add_argument("--arms", help="some of them, as a,b (default: all)")
    parser.add_argument("--seeds", help="as 0-4 or 0,3 (default: the study's own)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="does everything run? In seconds; the numbers mean nothing")
    parser.add_argument("--out", type=Path, help="folder of the results (default: experiments/results/STUDY)")
    parser.add_argument("--runs", type=Path, help="folder of data and checkpoints (default: runs/STUDY)")
    parser.add_argument(
        "--on", choices=("local", "slurm"), default="local", help="where it runs (default: %(default)s)"
    )
    parser.add_argument("--rows-only", action="store_true", help="no table: others are making rows at the same time")
    parser.add_argument(
        "--check", action="store_true", help="run the arms and seeds again and compare them, bit for bit"
    )


def run(args: argparse.Namespace) -> int:
    """0; 1 where --check finds another row; 130 after Ctrl-C, with the rows so far kept."""
    from mixdistill.studies.study import load_study
    from mixdistill.studies.sweep import Sweep

    study = load_study(args.study)
    arms = args.arms.split(",") if args.arms else None
    seeds = numbers(args.seeds) if args.seeds else list(study.seeds)
    folder = "tiny/" * args.tiny + study.name
    runs = args.runs or Path("runs") / folder
    results = args.out or (runs / "results" if args.tiny else Path("experiments/results") / study.name)
    what = Sweep(args.study, study, study.tiny if args.tiny else study.size, results, runs)
    if args.check:
        return _check(what, study.choose(arms), seeds)
    todo = what.missing(arms, seeds)
    if args.on == "slurm":
        from mixdistill.studies.slurm import submit

        return submit(what, todo, args.tiny)
    print(f"study {study.name}: {len(todo)} rows to make, {len(what.finished())} are there", flush=True)
    if todo and not _rows(what, todo, args.jobs):
        return 130
    return 0 if args.rows_only else _publish(what)


def _rows(what: "Sweep", todo: Sequence[tuple[str, int]], jobs: int) -> bool:
    """False when interrupted."""
    from mixdistill.studies.sweep import sweep

    what.runs.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        sweep(what, todo, jobs)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from there", file=sys.stderr)
        return False
    finally:
        signal.signal(signal.SIGTERM, before)
    return True


def _publish(what: "Sweep") -> int:
    from mixdistill.studies.publish import publish, results_of, table

    found = list(what.finished().values())
    if not found:
        raise UserError(f"study {what.study.name} has no row yet")
    verdict = publish(what.study, found, what.results)
    print(table(what.study, results_of(what.study, found)))
    print(f"{verdict.outcome}: {verdict.words}\n{what.results}/verdict.md")
    return 0


def _check(what: "Sweep", arms: Sequence[str], seeds: Sequence[int]) -> int:
    from mixdistill.studies.sweep import check

    have = what.finished()
    keys = [(arm, seed) for arm in arms for seed in seeds if (arm, seed) in have]
    if not keys:
        raise UserError(f"{what.results} has no row of these arms and seeds made by the study as it is now")
    other = [key for key in keys if not check(what, key)]
    for arm, seed in keys:
        print(f"{arm}, seed {seed}: {'ANOTHER ROW' if (arm, seed) in other else 'the same'}")
    return 1 if other else 0


def numbers(text: str) -> list[int]:
    """ "0-2,7" -> 0, 1, 2, 7. Raises `UserError` for anything else."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UserError(f"--seeds {text}: write 0-4 or 0,3,7")
        found += range(int(first), int(last or first) + 1)
    return found
