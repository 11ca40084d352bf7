"""`mixdistill show RECIPE`: every setting as `path = value`; the paths are those that `--set` takes."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("recipe", metavar="RECIPE", help="module:function or file.py:function")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change a setting first")
    parser.add_argument("--diff", metavar="OTHER", help="print only what OTHER sets differently")


def run(args: argparse.Namespace) -> int:
    """Prints the text, or the differences."""
    from mixdistill.recipe import diff, fingerprint, load, set_all, show

    recipe = set_all(load(args.recipe), args.set)
    if args.diff:
        print(diff(recipe, load(args.diff)) or "no difference")
    else:
        print(show(recipe), end="")
        print(f"# fingerprint {fingerprint(recipe)}")
    return 0
