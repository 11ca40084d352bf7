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
    ranked = _suggest(args, plans[0]) if args.suggest else None
    if args.json:
        print(json.dumps({"stages": plans} | ({} if ranked is None else {"suggestions": ranked}), indent=1))
    else:
        _print(args, plans, ranked)
    return 0 if all(plan["fits"] for plan in plans) else 1


def _ask(args: argparse.Namespace, changes: dict[str, Any], stage: int | None) -> list[dict[str, Any]]:
    from mixdistill.plan.worker import ask

    request = {"recipe": args.recipe, "set": args.set, "topology": args.topology, "changes": changes, "stage": stage}
    request |= {"fast": args.fast, "memory": None if args.hbm is None else int(args.hbm * GIB)}
    return [plan | {"changes": changes} for plan in ask(request)["stages"]]


def _suggest(args: argparse.Namespace, first: dict[str, Any]) -> list[dict[str, Any]]:
    from mixdistill.plan.advice import rank, variants

    found = []
    for changes in list(variants(first, first["remat"] is not None))[: args.suggest]:
        try:
            found += _ask(args, changes, args.stage or 0)
        except UserError as error:  # rows or sizes that the variant's mesh does not divide
            found.append({"fits": False, "changes": changes, "error": str(error)})
    return rank(found)


def _print(args: argparse.Namespace, plans: list[dict[str, Any]], ranked: list[dict[str, Any]] | None) -> None:
    from mixdistill.plan.advice import advice
    from mixdistill.plan.text import lines

    for plan in plans:
        print("\n".join(lines(plan, args.price)))
        for line in advice(plan):
            print(f"  what would help: {line}")
    if ranked is not None:
        print(f"what fits, fastest first ({len(ranked)} of {args.suggest} tried):")
        for plan in ranked:
            changed = ", ".join(f"{name}={value}" for name, value in plan["changes"].items())
            speed = "" if plan["roofline"] is None else f", at best {plan['roofline']['seconds'] * 1e3:,.1f} ms"
            print(f"  {changed}: {plan['needed'] / GIB:.2f} GiB{speed}")
