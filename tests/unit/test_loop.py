"""The order of things in the host loop, on a train step that only counts."""

from pathlib import Path

import jax
import numpy as np
import pytest

from mixdistill.objective import Tally
from mixdistill.recipe import load, set_all
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world
from mixdistill.training import job as jobs
from mixdistill.training import loop, report
from mixdistill.training.stop import Stop

TOY = Path(__file__).parents[1] / "resume" / "toy_recipes.py"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    shards = tmp_path_factory.mktemp("data") / "shards"
    write_world(CHAIN, shards, {"F": 20, "B": 20, "H": 20})
    return set_all(load(f"{TOY}:steered"), [f"stages.{k}.source.shards={shards}" for k in (0, 1)])


class Trace:
    """What happened, in order; no program is compiled."""

    def __init__(self, monkeypatch):
        self.seen: list[tuple[str, int]] = []
        monkeypatch.setattr(jobs.Job, "train_step", lambda job, stage: self.step(job, stage))
        fetch = jax.device_get
        monkeypatch.setattr(report.jax, "device_get", lambda tree: (self.note("fetch", tree), fetch(tree))[1])

    def step(self, job, stage):
        objective = job.objectives[stage]

        def train_step(state, batch):
            number = int(state.train_step) + 1
            self.seen.append(("dispatch", number))
            ones = np.ones(len(job.teachers), np.float32)
            counted = {"loss": Tally(np.float32(number), np.float32(1)), "optimizer/skipped": Tally(np.float32(0), 1.0)}
            counted |= {name: Tally(np.float32(0), np.float32(1)) for name in ("no_data", "optimizer/grad_norm")}
            counted |= {f"router/{name}": Tally(ones, ones) for name, entry in objective.memory.items() if entry.every}
            return state._replace(train_step=np.int32(number)), counted

        return train_step

    def note(self, what, tree):
        if isinstance(tree, dict):  # not the checksums of a checkpoint
            self.seen.append((what, int(tree["loss"].sum)))

    def hook(self, event):
        if event.kind in ("log", "checkpoint", "stage"):
            self.seen.append((event.kind, event.train_step))


def test_tallies_of_a_train_step_are_fetched_after_the_next_was_dispatched(recipe, tmp_path, monkeypatch):
    trace = Trace(monkeypatch)
    loop.run(recipe, tmp_path, hooks=[trace.hook], devices=jax.devices()[:1], quiet=True)
    assert trace.seen[:14] == [
        ("dispatch", 1),
        ("dispatch", 2),
        ("fetch", 1),
        ("dispatch", 3),
        ("fetch", 2),
        ("dispatch", 4),
        ("fetch", 3),
        ("log", 3),
        # A checkpoint waits for what it saves.
        ("fetch", 4),
        ("log", 4),
        ("checkpoint", 4),
        ("dispatch", 5),
        ("fetch", 5),
        ("stage", 5),
    ]


def test_a_signal_before_the_first_train_step_saves_the_start(recipe, tmp_path, monkeypatch):
    trace = Trace(monkeypatch)

    def stop_now(event):
        if event.kind == "start":
            Stop._ask(stops[0], 15, None)

    stops = []
    enter = Stop.__enter__
    monkeypatch.setattr(Stop, "__enter__", lambda self: stops.append(self) or enter(self))
    outcome = loop.run(recipe, tmp_path, hooks=[stop_now, trace.hook], devices=jax.devices()[:1], quiet=True)
    assert trace.seen == [("checkpoint", 0)]
    assert (outcome.stopped_by, outcome.position.train_step) == ("SIGTERM", 0)
