"""What `prepare` and `tokenizer train` share: the arguments that say what to read, and the progress while reading."""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mixdistill.errors import UserError

PLAIN_SECONDS = 5.0  # between two lines of progress where there is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """SOURCES and how to read them."""
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="trace files, or folders of them")
    parser.add_argument("--format", help="source format (default: found out file by file)")
    parser.add_argument(
        "--map", action="append", default=[], metavar="FIELD=PATH", help="where a field lies, e.g. prompt=input.text"
    )
    teacher = parser.add_mutually_exclusive_group()
    teacher.add_argument("--teacher", metavar="NAME", help="the teacher of all rows that do not name one")
    teacher.add_argument("--teacher-field", metavar="PATH", help="the field that names the teacher")


def read_as(args: argparse.Namespace):
    """The arguments as a `ReadAs`. Raises `UserError` for a --map that is no pair."""
    from mixdistill.traces.sources import ReadAs

    for pair in args.map:
        field, equals, path = pair.partition("=")
        if not (field and equals and path):
            raise UserError(f"--map {pair!r} is not FIELD=PATH; for example --map prompt=input.text")
    mapping = dict(pair.split("=", 1) for pair in args.map)
    return ReadAs(args.format, mapping or None, args.teacher, args.teacher_field)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, int, int, int], None]]:
    """A function of (phase, files done, files, traces) that shows them: a bar on a terminal, now and then a line
    elsewhere. All on stderr."""
    if sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield _lines()


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[str, int, int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks = {}

        def show(phase: str, done: int, files: int, traces: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=files)
            bars.update(tasks[phase], completed=done, description=f"{phase}: {traces:,} traces")

        yield show


def _lines() -> Callable[[str, int, int, int], None]:
    last = time.monotonic()

    def show(phase: str, done: int, files: int, traces: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_SECONDS or done == files:
            print(f"{phase}: {traces:,} traces, {done} of {files} files", file=sys.stderr, flush=True)
            last = time.monotonic()

    return show
