"""What `eval` and `sample` share: which student of which run."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a trained student."""
    parser.add_argument("workdir", type=Path, metavar="WORKDIR", help="of `mixdistill train`")
    parser.add_argument("--train-step", type=int, metavar="N", help="which checkpoint (default: the last)")
    parser.add_argument(
        "--recipe", help="module:function or file.py:function; needed for a student that is made by a function"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="as it was trained, to --recipe"
    )


def open_student(args: argparse.Namespace):
    """The student as `training.workdir.Trained`. Raises `UserError` for what is not there."""
    from mixdistill.training.workdir import open_trained

    return open_trained(args.workdir, train_step=args.train_step, recipe=recipe_of(args))


def recipe_of(args: argparse.Namespace):
    """The recipe that was named, or None."""
    from mixdistill.recipe import load, set_all

    return set_all(load(args.recipe), args.set) if args.recipe else None
