"""Trackers hear what metrics.jsonl holds; the two libraries are called as they want to be."""

import sys
import types

import numpy as np
import pytest

from experiments.base import smoke
from mixdistill.errors import UserError
from mixdistill.objective import Tally
from mixdistill.training.hooks import Event
from mixdistill.training.screen import teacher_table
from mixdistill.training.tracking import open_tracker, track


def event(kind: str, **tallies: Tally) -> Event:
    return Event(kind, 7, "s", None, 0, 0.0, tallies)


TALLIES = {
    "loss": Tally(np.float32(6), np.float32(4)),
    "teacher/nll": Tally(np.array([2.0, 0.0]), np.array([4.0, 0.0])),
    "router/progress": Tally(np.array([0.25, 0.75]), np.array([1.0, 1.0])),
}


def test_a_tracker_hears_means_and_the_end():
    heard = []

    class Mine:
        def log(self, numbers, train_step):
            heard.append((train_step, numbers))

        def finish(self):
            heard.append("finished")

    hook = track(Mine(), ("ann", "bob"))
    for one in (event("start"), event("log", **TALLIES), event("checkpoint"), event("end")):
        hook(one)
    # Bob has no tokens: nothing is sent for him.
    numbers = {"loss": 1.5, "teacher/nll/ann": 0.5, "router/progress/ann": 0.25, "router/progress/bob": 0.75}
    assert heard == [(7, numbers), "finished"]


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_libraries_are_called_as_they_want(monkeypatch, kind):
    calls = []
    library = types.ModuleType(kind)
    library.init = lambda **options: calls.append(("init", options["project"], options["name"], options["resume"]))
    library.log = lambda numbers, step: calls.append(("log", numbers, step))
    library.finish = lambda: calls.append(("finish",))
    monkeypatch.setitem(sys.modules, kind, library)
    tracker = open_tracker(kind, "mine", smoke())
    tracker.log({"loss": 1.0}, 3)
    tracker.finish()
    name = calls[0][2]
    assert name.startswith("smoke-")
    assert calls == [("init", "mine", name, "allow"), ("log", {"loss": 1.0}, 3), ("finish",)]


def test_unknown_and_missing(monkeypatch):
    with pytest.raises(UserError, match="did you mean 'wandb'"):
        open_tracker("wand", "p", smoke())
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match="pip install trackio"):
        open_tracker("trackio", "p", smoke())


def test_screen_has_a_column_for_the_weights():
    table = teacher_table(event("log", **TALLIES), ("ann", "bob"))
    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells["teacher"] == ["ann", "bob"]
    assert cells["nll (nats)"] == ["0.500", "-"]
    assert cells["weight"] == ["25%", "75%"]
