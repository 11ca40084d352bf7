"""`mixdistill export WORKDIR --to FOLDER`: a trained student as transformers loads it."""

import argparse
from pathlib import Path

from mixdistill.commands import trained
from mixdistill.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    trained.add_arguments(parser)
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="a folder that does not exist yet")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the weights (default: as trained)")
    parser.add_argument(
        "--max-length",
        type=int,
        default=32_768,
        metavar="N",
        help="tokens it is good for (default: %(default)s)",
    )
    parser.add_argument(
        "--teachers",
        nargs="+",
        metavar="NAME[=WEIGHT]",
        help="of a run with adapters and merged branches: the adapters that these teachers' last branches ended with",
    )
    parser.add_argument("--adapters", action="store_true", help="the adapters alone, for PEFT; else they are merged")


def run(args: argparse.Namespace) -> int:
    """Writes the folder, all of it or nothing; 0."""
    from mixdistill.training.export import export, export_adapters

    which = {"train_step": args.train_step, "recipe": trained.recipe_of(args), "teachers": _teachers(args.teachers)}
    if args.adapters:
        export_adapters(args.workdir, args.to, **which)
    else:
        export(args.workdir, args.to, dtype=args.dtype, max_length=args.max_length, **which)
    print(f"wrote {args.to}: {', '.join(sorted(path.name for path in args.to.iterdir()))}")
    return 0


def _teachers(words: list[str] | None) -> dict[str, float] | None:
    """{name: weight}; without a weight all have the same, and they add up to one."""
    if words is None:
        return None
    try:
        pairs = [word.partition("=") for word in words]
        return {name: float(weight) if equals else 1 / len(words) for name, equals, weight in pairs}
    except ValueError:
        raise UserError(f"--teachers {' '.join(words)}: write NAME or NAME=WEIGHT for each") from None
