"""Experiment trackers: the numbers of metrics.jsonl, sent to Weights & Biases, to trackio, or to one of yours.

run(recipe, workdir, hooks=[track(wandb_tracker("my-project", recipe), teachers)])
"""

import importlib
from types import ModuleType
from typing import Protocol

from mixdistill.errors import UserError, unknown
from mixdistill.recipe import Recipe, fingerprint, show
from mixdistill.training.hooks import Event, Hook, scalars


class Tracker(Protocol):
    """What a tracker has to do."""

    def log(self, numbers: dict[str, float], train_step: int) -> None:
        """Keeps the numbers of a train step."""

    def finish(self) -> None:
        """The run is over, or has failed; called once."""


def track(tracker: Tracker, teachers: tuple[str, ...]) -> Hook:
    """A hook that tells the tracker of every log event. Use it on the first process alone."""

    def hook(event: Event) -> None:
        if event.kind == "log":
            tracker.log(scalars(event, teachers), event.train_step)
        elif event.kind in ("end", "failed"):
            tracker.finish()

    return hook


def open_tracker(kind: str, project: str, recipe: Recipe) -> Tracker:
    """The tracker of that kind. Raises `UserError` for one that is unknown or not installed."""
    if kind not in TRACKERS:
        raise unknown("tracker", kind, TRACKERS)
    return TRACKERS[kind](project, recipe)


def wandb_tracker(project: str, recipe: Recipe) -> Tracker:
    """Weights & Biases; a run that goes on does so there, too: its identity is the recipe's fingerprint."""
    wandb = _module("wandb")
    name = _name(recipe)
    return _Module(
        wandb, wandb.init(project=project, name=name, id=name, resume="allow", config={"recipe": show(recipe)})
    )


def trackio_tracker(project: str, recipe: Recipe) -> Tracker:
    """trackio: the same calls, kept on this machine."""
    trackio = _module("trackio")
    config = {"recipe": show(recipe)}
    return _Module(trackio, trackio.init(project=project, name=_name(recipe), resume="allow", config=config))


TRACKERS = {"wandb": wandb_tracker, "trackio": trackio_tracker}


class _Module:
    """Both libraries log by functions of their module, on the run that `init` began."""

    def __init__(self, module: ModuleType, run: object):
        self._module, self._run = module, run

    def log(self, numbers: dict[str, float], train_step: int) -> None:
        self._module.log(numbers, step=train_step)

    def finish(self) -> None:
        self._module.finish()


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise UserError(f"tracker {name} is not installed; install it with `pip install {name}`") from None


def _name(recipe: Recipe) -> str:
    return f"{recipe.name}-{fingerprint(recipe)[:8]}"
