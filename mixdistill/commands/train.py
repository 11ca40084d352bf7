"""`mixdistill train RECIPE`: train a student; called again, it goes on where it stopped."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixdistill.recipe import Recipe
    from mixdistill.training.hooks import Hook
    from mixdistill.training.loop import Outcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("recipe", metavar="RECIPE", help="module:function or file.py:function")
    parser.add_argument("--workdir", type=Path, help="where the run lives (default: runs/NAME-FINGERPRINT)")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change a setting, see `show`")
    parser.add_argument(
        "--distributed", action="store_true", help="join the other processes of this job (SLURM, GKE, TPU)"
    )
    parser.add_argument("--profile", metavar="FIRST:LAST", help="record these train steps into WORKDIR/profile")
    parser.add_argument("--track", metavar="wandb|trackio", help="send the metrics there, too (must be installed)")
    parser.add_argument(
        "--forgive",
        action="append",
        default=[],
        metavar="TEACHER",
        help="let a teacher out of quarantine (all: every one), and go on where the guard has stopped the run",
    )
    parser.add_argument("--project", default="mixdistill", help="of --track (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """0 when the run is done or was stopped in good order by a signal, 1 when its guard stopped it."""
    import jax

    from mixdistill.recipe import fingerprint, load, set_all

    if args.distributed:
        from mixdistill.training.roll_call import join

        join()
    recipe = set_all(load(args.recipe), args.set)
    workdir = args.workdir or Path("runs") / f"{recipe.name}-{fingerprint(recipe)[:8]}"

    from mixdistill.training.goodput import sentence
    from mixdistill.training.history import LEDGER, read_ledger
    from mixdistill.training.hooks import METRICS_FILE, read_metrics
    from mixdistill.training.loop import run as train
    from mixdistill.training.spending import in_all, spending

    if args.distributed:
        _roll_call(recipe)
    command = " ".join([args.recipe, *(f"--set {change}" for change in args.set)])
    hooks = [*_trackers(args, recipe), *_profile(args, workdir)]
    outcome = train(recipe, workdir, hooks=hooks, command=command, forgive=tuple(args.forgive))
    if jax.process_index() == 0:
        lines = read_metrics(workdir / METRICS_FILE)
        done = f"{outcome.position.train_step} train steps, {in_all(lines)}"
        if _stopped_by_guard(outcome):
            print(
                f"the guard stopped the run after {done}: {outcome.stopped_by}. What happened: mixdistill which "
                f"{workdir} --decisions; to go on all the same: --forgive all"
            )
        elif outcome.stopped_by:
            print(
                f"stopped by {outcome.stopped_by} after {done}; saved in {workdir}; the same command goes on from there"
            )
        else:
            print(f"finished: {done}, {outcome.position.seconds:.1f} s; saved in {workdir}; {sentence(lines)}")
        if len(by_stage := spending(lines)) > 1:
            print(*(f"  stage {name}: {spent}" for name, spent in by_stage.items()), sep="\n")
        for one in read_ledger(workdir / LEDGER):
            if one.get("event") == "admission":
                print(f"  admission: {one['read']:,} tokens read, {one['cpu_seconds']} CPU seconds; {one['reason']}")
    return 1 if _stopped_by_guard(outcome) else 0


def _stopped_by_guard(outcome: "Outcome") -> bool:
    guard = outcome.position.guard or {}
    return outcome.stopped_by is not None and outcome.stopped_by == guard.get("stopped")


def _roll_call(recipe: "Recipe") -> None:
    """All processes run the same recipe on the same data with the same versions; the first one says where they are."""
    import jax

    from mixdistill.recipe import fingerprint
    from mixdistill.traces import manifest
    from mixdistill.training.roll_call import roll_call, versions

    folders = sorted({str(folder) for stage in recipe.stages for folder in getattr(stage.source, "folders", ())})
    manifests = {f"manifest of {folder}": json.dumps(manifest.read(Path(folder)), sort_keys=True) for folder in folders}
    hosts = roll_call({**versions(), "recipe": fingerprint(recipe), **manifests})
    if jax.process_index() == 0:
        where = ", ".join(f"{index} on {host}" for index, host in enumerate(hosts))
        print(f"{len(hosts)} processes: {where}", file=sys.stderr)


def _profile(args: argparse.Namespace, workdir: Path) -> "list[Hook]":
    from mixdistill.training.profile import parse, profile

    return [] if args.profile is None else [profile(workdir, *parse(args.profile))]


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
