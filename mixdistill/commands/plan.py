"""`mixdistill plan RECIPE --topology NAME`: does it compile and fit, how fast can it be, what does it cost?"""

import argparse
import json
from typing import Any

from mixdistill.errors import UserError

GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("recipe", metavar="RECIPE", help="module:function or file.py:function")
    parser.add_argument("--topology", required=True, metavar="NAME", help="v5e-16, v5p-128, h200-8, cpu-8, ...")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change a setting first")
    parser.add_argument("--preset", help="mesh and rules: fsdp, fsdp_tp, fsdp_tp_context, multislice")
    parser.add_argument("--stage", type=int, metavar="N", help="of the curriculum, from 0 (default: all)")
    parser.add_argument("--price", type=float, metavar="P", help="of a chip for an hour")
    parser.add_argument("--hbm", type=float, metavar="GIB", help="memory of a device, in place of the chip's")
    parser.add_argument("--fast", action="store_true", help="compile with fewer optimisations, in half the time")
    parser.add_argument("--suggest", type=int, metavar="N", help="try N presets, microbatches and remat policies")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the plan; 0 if all stages fit, 1 if one does not."""
    from mixdistill.plan.topology import find

    find(args.topology)
    plans = _ask(args, {"preset": args.preset} if args.preset else {}, args.stage)
    tried = _suggest(args, plans[0]) if args.suggest else None
    if args.json:
        print(json.dumps({"stages": plans} | ({} if tried is None else _ranked(tried)), indent=1))
    else:
        _print(args, plans, tried)
    return 0 if all(plan["fits"] for plan in plans) else 1


def _ask(args: argparse.Namespace, changes: dict[str, Any], stage: int | None) -> list[dict[str, Any]]:
    from mixdistill.plan.worker import ask

    request = {"recipe": args.recipe, "set": args.set, "topology": args.topology, "changes": changes, "stage": stage}
    request |= {"fast": args.fast, "memory": None if args.hbm is None else int(args.hbm * GIB)}
    return [plan | {"changes": changes} for plan in ask(request)["stages"]]


def _suggest(args: argparse.Namespace, first: dict[str, Any]) -> list[dict[str, Any]]:
    """The plans of up to N variants, in the order in which they were compiled."""
    from mixdistill.plan.advice import settled, variants

    found: list[dict[str, Any]] = []
    for changes in variants(first, first["remat"] is not None):
        if settled(changes, found):
            continue
        try:
            found += _ask(args, changes, args.stage or 0)
        except UserError as error:  # rows or sizes that the variant's mesh does not divide
            found.append({"fits": False, "changes": changes, "error": str(error)})
        if len(found) == args.suggest:
            break
    return found


def _ranked(tried: list[dict[str, Any]]) -> dict[str, Any]:
    from mixdistill.plan.advice import rank

    return {"suggestions": rank(tried), "refused": [plan for plan in tried if not plan["fits"]]}


def _print(args: argparse.Namespace, plans: list[dict[str, Any]], tried: list[dict[str, Any]] | None) -> None:
    from mixdistill.plan.advice import advice
    from mixdistill.plan.text import lines, suggestions

    for plan in plans:
        print("\n".join(lines(plan, args.price)))
        for line in advice(plan):
            print(f"  what would help: {line}")
    if tried is not None:
        print("\n".join(suggestions(**_ranked(tried))))
