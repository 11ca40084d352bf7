"""`mixdistill inspect SHARDS`: which teacher fits, which clashes, where, and what to do. Exit code 1 with --strict if
anything deserves a warning."""

import argparse
import json
import os
import sys
from pathlib import Path

from mixdistill.commands import pilots


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="folder that `mixdistill prepare` made")
    parser.add_argument("--student", help="what each teacher is to this student; as for `mixdistill score`")
    parser.add_argument("--ledger", type=Path, metavar="SIDECAR", help="of `mixdistill score` (default: SHARDS.ledger)")
    parser.add_argument("--max-traces", type=int, default=200, help="a teacher, for the student (default: %(default)s)")
    parser.add_argument("--anchor", metavar="TEACHER", help="whose student it is (default: the one it knows best)")
    parser.add_argument(
        "--against",
        type=Path,
        nargs="+",
        default=[],
        metavar="SOURCE",
        help="evaluation problems to find in the shards",
    )
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write a page that works offline")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if there is a warning")
    pilots.add_arguments(parser)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")


def run(args: argparse.Namespace) -> int:
    """0, or 1 with --strict and a warning."""
    from mixdistill.diagnostics.inspection import all_warnings, inspect, plain
    from mixdistill.errors import UserError
    from mixdistill.traces.shards import Shards

    shards = Shards.open(args.shards)
    for name in ("workers", "max_traces"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)} must be at least 1")
    if (args.second_opinion or args.pilot is not None or args.pairwise is not None) and not args.student:
        raise UserError(
            "pilots are trained from a student: give --student with --pilot, --pairwise and --second-opinion"
        )
    pilots.check_pilots(args, shards)
    found = inspect(shards, workers=args.workers, against=_prompts(args.against))
    if args.student:
        _add_student(found, shards, args)
    if args.html:
        from mixdistill.reports.pages import write_inspection

        write_inspection(plain(found), shards, args.html)
    if args.json:
        print(json.dumps(plain(found), ensure_ascii=False, allow_nan=False, indent=1))
    else:
        from rich.console import Console

        from mixdistill.reports.card import print_card

        print_card(found, Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=False))
    if args.html:
        print(f"page: {args.html}", file=sys.stderr)
    return int(args.strict and any(w["level"] == "warning" for w in all_warnings(found)))


def _add_student(found: dict, shards, args: argparse.Namespace) -> None:
    """What the student makes of each teacher, and the verdicts again with it."""
    from mixdistill.commands.students import check_tokenizer, open_student
    from mixdistill.data.ledger import default_sidecar
    from mixdistill.diagnostics.inspection import conclude
    from mixdistill.evaluation.fit import LEARNED, fit

    opened = open_student(args.student)
    check_tokenizer(opened, shards)
    plan = pilots.pilot_plan(args)
    made = fit(
        shards,
        opened.student,
        opened.params,
        fingerprint=opened.fingerprint,
        ledger=args.ledger or default_sidecar(shards),
        anchor=args.anchor,
        max_traces=args.max_traces,
    )
    found["student"] = {
        "name": opened.name,
        "fingerprint": opened.fingerprint,
        "traces": made.traces,
        "scored_tokens": made.scored_tokens,
        "anchor": made.anchor,
        "anchor_content_nll": made.anchor_nll,
        "anchor_is_learned": made.anchor_nll <= LEARNED,
    }
    found["pairs"] |= {"gradient_cosine": made.cosine, "gradient_conflict_rate": made.conflict_rate}
    for name, row in found["teachers"].items():
        row["measures"], row["undecidable"] = made.measures[name], made.undecidable.get(name)
    if args.second_opinion:
        pilots.add_second_opinions(found["teachers"], shards, opened, plan)
    if args.pilot is not None:
        found["pilots"] = pilots.mix_table(shards, opened, args.pilot, plan)
    if args.pairwise is not None:
        added = pilots.pairwise(shards, opened, args.pairwise, plan)
        found["pairs"] |= added["pairs"]
        found["pairwise"] = added["pairwise"]
    conclude(found)


def _prompts(sources: list[Path]) -> list[str]:
    """The problems of these files, each once."""
    from mixdistill.traces.sources import ReadAs, Row, find_files, read_file

    rows = (row for file in (find_files(sources) if sources else ()) for row in read_file(file, ReadAs()))
    return list(dict.fromkeys(row.trace.prompt for row in rows if isinstance(row, Row)))
