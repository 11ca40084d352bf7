"""`mixdistill check-loss module:function`: does this loss (or gate) keep every promise of the objective?"""

import argparse
import ast
import inspect
import os
from typing import TYPE_CHECKING, Any

from mixdistill.errors import UserError

if TYPE_CHECKING:
    from mixdistill.check import Finding

WORDS = {True: "[green]passed[/]", False: "[bold red]failed[/]", None: "[yellow]skipped[/]"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "function",
        metavar="FUNCTION",
        help="module:function or file.py:function: a loss or gate, or a function without parameters that returns a "
        "loss with its knobs set, a Term or an Objective",
    )
    parser.add_argument("--gate", action="store_true", help="it is a gate: check it on cross entropy")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KNOB=VALUE", help="set a knob, or name the signal to read"
    )
    parser.add_argument("--field", action="append", default=[], metavar="NAME", help="a batch field of your shards")
    parser.add_argument("--examples", type=int, default=25, metavar="N", help="random cases a property (default: 25)")


def run(args: argparse.Namespace) -> int:
    """Prints a table; 0 when nothing failed, 1 otherwise."""
    _on_eight_devices()
    findings = _check(args)
    _print(args.function, findings)
    return int(any(finding.passed is False for finding in findings))


def _on_eight_devices() -> None:
    """Host devices, unless the user has chosen others. Must come before anything initialises jax."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    flag = "--xla_force_host_platform_device_count"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}=8".strip()


def _check(args: argparse.Namespace) -> "list[Finding]":
    from mixdistill.check import check_gate, check_loss, check_objective
    from mixdistill.objective import Objective, Term
    from mixdistill.recipe.load import find
    from mixdistill.signals.signal import Bound, use

    found: Any = find(args.function, "loss")
    if not isinstance(found, Bound) and not inspect.signature(found).parameters:
        found = found()
    if isinstance(found, Term):
        found = Objective({"checked": found}, fields=tuple(args.field))
    if isinstance(found, Objective):
        if args.set or args.gate:
            raise UserError(f"{args.function} returns a whole objective; --set and --gate are for a single function")
        return check_objective(found, num_examples=args.examples)
    check = check_gate if args.gate else check_loss
    return check(use(found, **_knobs(args.set)), fields=tuple(args.field), num_examples=args.examples)


def _knobs(assignments: list[str]) -> dict[str, Any]:
    knobs = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator:
            raise UserError(f"--set takes knob=value, got {assignment!r}")
        try:
            knobs[name.strip()] = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            knobs[name.strip()] = text.strip()
    return knobs


def _print(name: str, findings: "list[Finding]") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=name, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    for finding in findings:
        table.add_row(finding.name, WORDS[finding.passed], escape(finding.detail))
    Console().print(table)
    failed = [finding.name for finding in findings if finding.passed is False]
    passed = sum(finding.passed is True for finding in findings)
    print(f"{passed} passed, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}")
