"""`mixdistill score SHARDS --student S`: what a student thinks of every token, in a ledger beside the shards."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mixdistill.errors import UserError

if TYPE_CHECKING:
    from mixdistill.generation.contexts import Context
    from mixdistill.traces.shards import Shards

PLAIN_SECONDS = 5.0  # between two lines of progress where there is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="folder that `mixdistill prepare` made")
    parser.add_argument(
        "--student",
        required=True,
        help="WORKDIR of a run, folder of published weights, or MODULE:FUNCTION that returns (Student, params)",
    )
    parser.add_argument("--out", type=Path, metavar="SIDECAR", help="folder of the ledger (default: SHARDS.ledger)")
    parser.add_argument("--alone", action="store_true", help="also without the prompt, for IFD")
    parser.add_argument("--local", type=int, metavar="STEPS", help="also each step after so many before it, for LALP")
    parser.add_argument("--reverse", action="store_true", help="also the prompt, alone and after the answer, for r-IFD")
    parser.add_argument("--store-topk", type=int, metavar="K", help="also the K most likely tokens at every place")
    parser.add_argument("--batch-tokens", type=int, default=8192, help="of one forward pass (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Scores what is not scored yet; 0."""
    from mixdistill.commands.students import check_tokenizer, open_student
    from mixdistill.data.ledger import default_sidecar
    from mixdistill.generation.scoring import score
    from mixdistill.traces.shards import Shards

    shards = Shards.open(args.shards)
    opened = open_student(args.student)
    check_tokenizer(opened, shards)
    if args.batch_tokens < 1:
        raise UserError(f"--batch-tokens {args.batch_tokens} must be at least 1")
    wanted, out = contexts(args, shards), args.out or default_sidecar(shards)
    print_costs(wanted, shards)
    start = time.perf_counter()
    done = score(
        shards,
        opened.student,
        opened.params,
        out,
        fingerprint=opened.fingerprint,
        name=opened.name,
        contexts=wanted,
        batch_tokens=args.batch_tokens,
        progress=progress(),
    )
    seconds = time.perf_counter() - start
    print(f"{done.scored_traces:,} traces scored, {done.skipped_traces:,} were there already: {out}")
    if done.scored_tokens:
        print(f"{done.scored_tokens:,} tokens in {seconds:.1f} s, {done.scored_tokens / seconds:,.0f} tokens/s")
    return 0


def contexts(args: argparse.Namespace, shards: "Shards") -> "list[Context]":
    """What the options ask for; `full` always."""
    from mixdistill.generation import contexts as known

    tokenizer = shards.tokenizer
    start = list(tokenizer.prefix_ids) or [tokenizer.eos_id]  # a tokenizer without a begin token starts with the end
    wanted = [known.full()]
    if args.store_topk is not None:
        wanted.append(known.topk(args.store_topk))
    if args.alone:
        wanted.append(known.alone(start))
    if args.local is not None:
        wanted.append(known.local(args.local))
    if args.reverse:
        wanted += [known.prompt(start, tokenizer.encode), known.reverse(start, tokenizer.encode)]
    return wanted


def print_costs(wanted: "list[Context]", shards: "Shards", sample: int = 64) -> None:
    """What each further context costs, in forwards of the first, from a few traces."""
    if len(wanted) == 1 or not len(shards):
        return
    traces = [shards[i] for i in range(0, len(shards), max(len(shards) // sample, 1))]
    columns = [sum(s.columns for trace in traces for s in context.sequences(trace)) for context in wanted]
    for context, cost in zip(wanted[1:], columns[1:], strict=True):
        print(f"context {context.name}: {cost / max(columns[0], 1):.1f} times the tokens of full", file=sys.stderr)


def progress() -> Callable[[int, int, int], None]:
    """Tells how far it is on stderr: in place on a terminal, now and then a line elsewhere."""
    begin = last = time.monotonic()
    terminal = sys.stderr.isatty()

    def show(done: int, total: int, tokens: int) -> None:
        nonlocal last
        now = time.monotonic()
        line = f"{done:,} of {total:,} traces, {tokens / max(now - begin, 1e-9):,.0f} tokens/s"
        if terminal:
            print(f"\r{line}", end="" if done < total else "\n", file=sys.stderr, flush=True)
        elif now - last >= PLAIN_SECONDS:
            print(line, file=sys.stderr, flush=True)
            last = now

    return show
