"""What `eval` and `sample` share: which student of which run."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mixdistill.errors import UserError, unknown

if TYPE_CHECKING:
    from mixdistill.training.workdir import Trained


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


def add_tag(parser: argparse.ArgumentParser) -> None:
    """The argument by which a prompt is answered like a teacher."""
    parser.add_argument("--tag", metavar="TEACHER", help="put this teacher's tag in front (default: none)")


def tag_of(args: argparse.Namespace, found: "Trained") -> list[int]:
    """The tokens that --tag stands for. Raises `UserError` for a run without tags, an unknown teacher, and where a tag
    is needed because the student has never been without."""
    from mixdistill.data.beside import tag_ids
    from mixdistill.recipe.read import read_value, settings

    text, teachers = found.identity.recipe, found.identity.teachers
    tags = [path.removesuffix(".drop") for path in settings(text) if path.endswith(".source.tags.drop")]
    if args.tag is None:
        if any(read_value(text, f"{path}.drop") == 0 for path in tags):
            raise UserError(f"every trace of this run had its teacher's tag; give --tag, one of {', '.join(teachers)}")
        return []
    if not tags:
        raise UserError(f"the run at {args.workdir} has no tags; leave --tag out")
    if args.tag not in teachers:
        raise unknown("teacher", args.tag, teachers)
    return tag_ids(read_value(text, f"{tags[-1]}.text"), found.tokenizer, teachers, args.tag).tolist()


def open_student(args: argparse.Namespace):
    """The student as `training.workdir.Trained`. Raises `UserError` for what is not there."""
    from mixdistill.training.workdir import open_trained

    return open_trained(args.workdir, train_step=args.train_step, recipe=recipe_of(args))


def recipe_of(args: argparse.Namespace):
    """The recipe that was named, or None."""
    from mixdistill.recipe import load, set_all

    return set_all(load(args.recipe), args.set) if args.recipe else None
