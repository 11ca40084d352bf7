"""`mixdistill train RECIPE`: train a student; called again, it goes on where it stopped."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixdistill.recipe import Recipe
    from mixdistill.training.hooks import Hook


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("recipe", metavar="RECIPE", help="module:function or file.py:function")
    parser.add_argument("--workdir", type=Path, help="where the run lives (default: runs/NAME-FINGERPRINT)")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change a setting, see `show`")
    parser.add_argument(
        "--distributed", action="store_true", help="join the other processes of this job (SLURM, GKE, TPU)"
    )
    parser.add_argument("--track", metavar="wandb|trackio", help="send the metrics there, too (must be installed)")
    parser.add_argument("--project", default="mixdistill", help="of --track (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """0 when the run is done or was stopped in good order."""
    import jax

    from mixdistill.recipe import fingerprint, load, set_all

    if args.distributed:
        jax.distributed.initialize()
    recipe = set_all(load(args.recipe), args.set)
    workdir = args.workdir or Path("runs") / f"{recipe.name}-{fingerprint(recipe)[:8]}"

    from mixdistill.training.loop import run as train

    command = " ".join([args.recipe, *(f"--set {change}" for change in args.set)])
    outcome = train(recipe, workdir, hooks=_trackers(args, recipe), command=command)
    if jax.process_index() == 0:
        done = f"{outcome.position.train_step} train steps, {outcome.position.tokens:,} tokens"
        if outcome.stopped_by:
            print(
                f"stopped by {outcome.stopped_by} after {done}; saved in {workdir}; the same command goes on from there"
            )
        else:
            print(f"finished: {done}, {outcome.position.seconds:.1f} s; saved in {workdir}")
    return 0


def _trackers(args: argparse.Namespace, recipe: "Recipe") -> "list[Hook]":
    """What --track asks for, on the first process alone."""
    import jax

    from mixdistill.traces.shards import Shards
    from mixdistill.training.tracking import open_tracker, track

    if args.track is None or jax.process_index() > 0:
        return []
    folders = [folder for stage in recipe.stages for folder in getattr(stage.source, "folders", ())]
    teachers = Shards.open(folders[0]).teachers if folders else ()
    return [track(open_tracker(args.track, args.project, recipe), teachers)]
