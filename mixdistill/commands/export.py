"""`mixdistill export WORKDIR --to FOLDER`: a trained student as transformers loads it."""

import argparse
from pathlib import Path

from mixdistill.commands import trained


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
    parser.add_argument("--adapters", action="store_true", help="the adapters alone, for PEFT; else they are merged")


def run(args: argparse.Namespace) -> int:
    """Writes the folder, all of it or nothing; 0."""
    from mixdistill.training.export import export, export_adapters

    which = {"train_step": args.train_step, "recipe": trained.recipe_of(args)}
    if args.adapters:
        export_adapters(args.workdir, args.to, **which)
    else:
        export(args.workdir, args.to, dtype=args.dtype, max_length=args.max_length, **which)
    print(f"wrote {args.to}: {', '.join(sorted(path.name for path in args.to.iterdir()))}")
    return 0
