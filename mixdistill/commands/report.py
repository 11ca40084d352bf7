"""`mixdistill report WORKDIR|STUDY -o report.html`: one page that works offline, and a summary in markdown."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixdistill.errors import UserError

if TYPE_CHECKING:
    from mixdistill.reports.run_data import Run
    from mixdistill.traces.shards import Shards
    from mixdistill.training.workdir import Trained

UNSURE = "Struck through: the least confident tenth of the steps, which the gate step_confidence would close."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("folder", type=Path, metavar="WORKDIR|STUDY", help="a run's folder, or one with runs below it")
    parser.add_argument("-o", "--out", type=Path, metavar="PAGE", help="the page (default: none, the summary alone)")
    parser.add_argument("--traces", type=int, default=24, help="in the trace viewer (default: %(default)s)")
    parser.add_argument("--shards", type=Path, help="where the run's shards lie now")


def run(args: argparse.Namespace) -> int:
    """Prints the summary and writes the page; 0."""
    from mixdistill.reports.markdown import summary
    from mixdistill.reports.run_data import find_runs

    runs = find_runs(args.folder)
    print(summary(runs))
    if args.out:
        _write(args, runs)
        print(f"page: {args.out}", file=sys.stderr)
    return 0


def _write(args: argparse.Namespace, runs: "list[Run]") -> None:
    from mixdistill.reports.data_page import data_sections, student_sections
    from mixdistill.reports.page import render, write
    from mixdistill.reports.run_page import run_sections, study_sections
    from mixdistill.reports.viewer import choose_traces, trace_views

    shards = _shards(args, runs[0])
    sections = study_sections(runs) if len(runs) > 1 else run_sections(runs[0])
    views, about = [], ""
    if shards is not None and len(shards):
        numbers = choose_traces(shards, max(args.traces, 0))
        trained = _trained(runs[0], shards)
        fields = {} if trained is None else _fields(trained, shards, numbers)
        closed, masked = (None, UNSURE) if trained is None else _closed(runs[0], trained, shards, numbers)
        sections += [*data_sections(shards), *student_sections(shards, fields)]
        views = trace_views(shards, numbers, fields, closed)
        whose = "this run" if len(runs) == 1 else runs[0].name
        about = f"Shaded by what the student of {whose} thinks of each token. {masked}" if fields else ""
    title = args.folder.resolve().name
    subtitle = f"{len(runs)} runs" if len(runs) > 1 else "one run"
    write(args.out, render(title, subtitle, sections, views, about))


def _shards(args: argparse.Namespace, run: "Run") -> "Shards | None":
    """Those of the first run, None where they are no longer there."""
    from mixdistill.traces.shards import Shards

    path = args.shards or next(iter(run.shards), None)
    try:
        return None if path is None else Shards.open(path)
    except UserError as error:
        if args.shards:
            raise
        print(f"without traces: {error}", file=sys.stderr)
        return None


def _trained(run: "Run", shards: "Shards") -> "Trained | None":
    """The run's student; None where it cannot be opened, with the reason."""
    from mixdistill.training.workdir import open_trained

    try:
        trained = open_trained(run.path)
        if trained.identity.tokenizer != shards.manifest["tokenizer"]:
            raise UserError(f"the run and {shards.path} have different tokenizers")
    except UserError as error:
        print(f"without shading: {error}", file=sys.stderr)
        return None
    return trained


def _fields(trained: "Trained", shards: "Shards", numbers: list[int]) -> Mapping[int, Mapping[str, Any]]:
    """What the student thinks of these traces."""
    from mixdistill.generation.contexts import full
    from mixdistill.generation.scoring import BATCH_TOKENS, Runner

    offsets, fields = Runner(trained.student, trained.params, BATCH_TOKENS, None)(full(), [shards[n] for n in numbers])
    return {
        number: {name: array[offsets[i] : offsets[i + 1]].astype("float32") for name, array in fields.items()}
        for i, number in enumerate(numbers)
    }


def _closed(run: "Run", trained: "Trained", shards: "Shards", numbers: list[int]) -> "tuple[Mapping | None, str]":
    """What the run's gates close in these traces, and how to say it."""
    from mixdistill.reports.replay import replay

    try:
        found = replay(run.recipe, trained, shards, numbers)
    except UserError as error:
        return None, f"The run's gates cannot be replayed: {error}. {UNSURE}"
    if found is None:
        return None, f"The run has no gates. {UNSURE}"
    return found.closed, f"Struck through: what the run's gates close now: {', '.join(found.gates)}."
