"""`mixdistill prepare SOURCES... --out SHARDS`: traces of many files, formats and teachers become shards."""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixdistill.commands import sources

if TYPE_CHECKING:
    from mixdistill.traces.shards import Shards


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    sources.add_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="SHARDS", help="folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace the shards that are there")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json or its folder (default: train one)")
    parser.add_argument("--vocab-size", type=int, default=8192, help="of the trained tokenizer (default: %(default)s)")
    parser.add_argument("--eos", metavar="TOKEN", help="the tokenizer's end token, where it is not found")
    parser.add_argument("--template", default="plain", help="plain, tokenizer (its own), or a jinja file")
    parser.add_argument("--segment", default="auto", metavar="RULE", help="how steps are found (default: auto)")
    parser.add_argument("--no-grade", action="store_true", help="leave the answers ungraded")
    parser.add_argument("--max-tokens", type=int, default=32768, help="leave longer traces out (default: %(default)s)")
    parser.add_argument(
        "--policy",
        choices=("quarantine", "strict"),
        default="quarantine",
        help="what becomes of a bad row: left out and noted, or the end (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=_num_cores(), help="processes (default: all cores)")


def run(args: argparse.Namespace) -> int:
    """Prepares and prints the table of teachers; 0."""
    # A scheduler's SIGTERM is tidied up after, too: as an exception it passes every `finally`.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        shards = _prepare(args)
    except (KeyboardInterrupt, SystemExit):
        print("interrupted; the same command goes on from there", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    _print_table(shards.manifest, args.out)
    return 0


def _prepare(args: argparse.Namespace) -> "Shards":
    from mixdistill.traces.prepare import Settings, prepare
    from mixdistill.traces.templates import load_template
    from mixdistill.traces.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(args.tokenizer, eos=args.eos) if args.tokenizer else None
    settings = Settings(load_template(args.template, tokenizer), args.segment, not args.no_grade, args.max_tokens)
    if tokenizer is None:
        print(
            f"no --tokenizer: a byte-level BPE of {args.vocab_size} tokens is trained on these traces first",
            file=sys.stderr,
        )
    with sources.progress() as show:
        return prepare(
            args.sources,
            args.out,
            tokenizer=tokenizer,
            vocab_size=args.vocab_size,
            read_as=sources.read_as(args),
            settings=settings,
            workers=args.workers,
            overwrite=args.overwrite,
            strict=args.policy == "strict",
            progress=show,
        )


def _print_table(manifest: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("teacher", box=None)
    for name in ("traces", "tokens", "steps", "accuracy", "quarantined"):
        table.add_column(name, justify="right")
    for teacher, row in manifest["teachers"].items():
        table.add_row(teacher, *_cells(row))
    table.add_row("all", *_cells(_total(manifest)), style="bold")
    terminal = sys.stdout.isatty()
    Console(width=None if terminal else 200, highlight=False).print(table)
    for teacher, count in manifest["teachers_without_traces"].items():
        print(f"no trace of teacher {teacher} is good: all {count} are quarantined")
    dropped = sum(row["logprobs_dropped"] for row in manifest["teachers"].values())
    if dropped:
        print(f"log-probabilities of {dropped} traces are left out: they were recorded with another tokenizer")
    _note_unverified(sum(row["unverified"] for row in manifest["teachers"].values()))
    for reason, count in manifest["quarantine_reasons"].items():
        print(f"quarantined: {count} x {reason}")
    if manifest["num_quarantined"]:
        print(f"each with file and line in {out / 'quarantine.jsonl'}")
    print(f"{manifest['num_traces']} traces, {manifest['num_tokens']} tokens in {out}")


def _note_unverified(count: int) -> None:
    from mixdistill.traces.grade import has_algebra

    if count and has_algebra():
        print(f"unverified: {count} answers, on which the algebra failed or took too long")
    elif count:
        print(f"unverified: {count} answers that take algebra; for them pip install 'mixdistill[verify]'")


def _cells(row: dict[str, Any]) -> list[str]:
    accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.3f}"
    counts = [f"{row[name]:,}" for name in ("num_traces", "num_tokens", "num_steps")]
    return [*counts, accuracy, f"{row['quarantined']:,}"]


def _total(manifest: dict[str, Any]) -> dict[str, Any]:
    correct, wrong = (sum(row[name] for row in manifest["teachers"].values()) for name in ("correct", "wrong"))
    accuracy = correct / (correct + wrong) if correct + wrong else None
    return manifest | {"accuracy": accuracy, "quarantined": manifest["num_quarantined"]}


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
