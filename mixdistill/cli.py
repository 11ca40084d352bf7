"""The command line: a table of commands, each in `commands/<name>.py`. Help is instant because no command imports jax
before it runs. Exit codes: 0 done, 1 a check said no, 2 bad input (one line, nothing written), 130 interrupted."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from mixdistill import __version__
from mixdistill.errors import UserError

COMMANDS = {
    "prepare": "traces of many sources into shards",
    "tokenizer": "train or show a tokenizer",
    "publish": "traces of shards as a TFDS dataset",
    "inspect": "which teacher fits, which clashes, and where",
    "score": "what a student thinks of every token, kept beside the shards",
    "train": "train a student by a recipe",
    "eval": "measure a trained student",
    "sample": "let a trained student answer a prompt",
    "serve": "put a trained student behind an OpenAI-compatible endpoint",
    "import": "check published weights that a recipe is to start from",
    "export": "a trained student as transformers loads it",
    "which": "which traces a train step was trained on, and what the guard decided",
    "sweep": "run a study: arms by seeds, a table, a plot and a verdict",
    "report": "one page of a run or a study that works offline",
    "show": "print a recipe in full",
    "explain": "print what a recipe computes: signals, gates, terms, stages",
    "plan": "does a recipe compile and fit on machines that are not here, and what would it cost",
    "launch": "the file that starts a recipe on many hosts, and submit it",
    "check-loss": "try a loss or gate in every way that training will",
    "doctor": "check the installation, shards or a run",
}


def _parser(name: str | None) -> argparse.ArgumentParser:
    """The full parser, with the arguments of command `name` alone loaded."""
    parser = argparse.ArgumentParser(prog="mixdistill", description=sys.modules["mixdistill"].__doc__)
    parser.add_argument("--version", action="version", version=f"mixdistill {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command, summary in COMMANDS.items():
        sub = commands.add_parser(command, help=summary, description=summary)
        if command == name:
            module = importlib.import_module(f"mixdistill.commands.{command.replace('-', '_')}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = _parser(next((word for word in words if word in COMMANDS), None)).parse_args(words)
    try:
        return int(args.run(args) or 0)
    except UserError as error:
        if os.environ.get("MIXDISTILL_DEBUG"):
            raise
        print(f"mixdistill {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
