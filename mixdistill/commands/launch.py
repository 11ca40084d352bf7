"""`mixdistill launch RECIPE --on ENGINE`: the file that starts a recipe on many hosts; `--submit` hands it in."""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from mixdistill.errors import UserError
from mixdistill.launch.engines import ENGINES, OPTIONAL, check
from mixdistill.launch.job import Job
from mixdistill.launch.machines import known, machine

HELP = {
    "processes": ("N", "processes a host"),
    "restarts": ("N", "how often a failed or preempted job starts again"),
    "image": ("IMAGE", "container image with mixdistill and the recipe in it"),
    "partition": ("NAME", "SLURM partition"),
    "account": ("NAME", "SLURM account"),
    "time": ("D-HH:MM", "SLURM time limit; 120 s before it the run saves and ends"),
    "cluster": ("NAME", "cluster"),
    "project": ("NAME", "cloud project"),
    "zone": ("NAME", "cloud zone"),
    "namespace": ("NAME", "Kubernetes namespace"),
    "queue": ("NAME", "Kueue queue"),
    "priority": ("NAME", "priority class"),
    "reservation": ("NAME", "reservation of machines"),
    "service_account": ("NAME", "account that the hosts act as"),
    "volume": ("CLAIM:PATH", "mount a persistent volume claim; may be given again"),
}
NUMBERS = ("processes", "restarts")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("recipe", metavar="RECIPE", help="module:function or file.py:function, as the hosts see it")
    parser.add_argument("--on", choices=list(ENGINES), required=True, help="the engine that you already run")
    parser.add_argument("--topology", default="cpu-1", metavar="NAME", help=f"{known()} (default: %(default)s)")
    parser.add_argument("--workdir", required=True, help="where the run lives: a path that all hosts see")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="as for `train`")
    parser.add_argument("--name", help="of the job (default: the recipe's name)")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=REF]",
        help="hand a variable on by reference: NAME from your shell (slurm, skypilot), NAME=SECRET/KEY (gke), "
        "NAME=SECRET (tpu-vm)",
    )
    parser.add_argument("--out", type=Path, help="write it here (default: print it)")
    parser.add_argument("--submit", action="store_true", help="hand it in, or run it here with --on local")
    for name in OPTIONAL:
        if name == "spot":
            parser.add_argument("--spot", action="store_true", default=None, help="preemptible machines")
            continue
        metavar, text = HELP[name]
        engines = ", ".join(engine for engine, about in ENGINES.items() if name in about.uses)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            metavar=metavar,
            help=f"{text} ({engines})",
            type=int if name in NUMBERS else str,
            action="append" if name == "volume" else "store",
        )


def run(args: argparse.Namespace) -> int:
    """0 when it was written, handed in or run to its end."""
    given = {name: getattr(args, name) for name in OPTIONAL if getattr(args, name) is not None}
    check(args.on, tuple(given))
    if args.submit and ENGINES[args.on].submit and args.out is None:
        raise UserError(
            f"--submit needs --out FILE: what was submitted should be there to read, say job{ENGINES[args.on].suffix}"
        )
    job = _job(args, given)
    text = ENGINES[args.on].write(job)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    elif not args.submit:
        print(text, end="")
    return _submit(args, job) if args.submit else 0


def _job(args: argparse.Namespace, given: dict) -> Job:
    """Loads the recipe, so that a misspelt setting is told here and not by a pod."""
    from mixdistill.recipe import load, set_all

    recipe = set_all(load(args.recipe), args.set)
    volume = {"volume": tuple(given["volume"])} if "volume" in given else {}
    name = args.name or re.sub(r"[^a-z0-9-]+", "-", recipe.name.lower()).strip("-")
    return Job(
        name=name,
        recipe=args.recipe,
        workdir=args.workdir,
        machine=machine(args.topology),
        changes=tuple(args.set),
        environment=tuple(args.env),
        **{**given, **volume},
    )


def _submit(args: argparse.Namespace, job: Job) -> int:
    submit = ENGINES[args.on].submit
    if submit is None:
        from mixdistill.launch.local import start

        return start(job)
    for words in submit(str(args.out), job):
        if shutil.which(words[0]) is None:
            raise UserError(f"{words[0]} is not installed here; {args.out} is written: submit it where it is")
        print(shlex.join(words), file=sys.stderr)
        code = subprocess.run(words, check=False).returncode
        if code:
            return 1
    return 0
