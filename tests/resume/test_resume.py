"""A run that was interrupted is the run that was not: bit for bit, whatever happened and wherever."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mixdistill.errors import UserError
from mixdistill.recipe import load, set_all
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world
from mixdistill.training.checkpoint import FOLDER
from mixdistill.training.history import LEDGER, read_ledger
from mixdistill.training.hooks import METRICS_FILE, read_metrics
from mixdistill.training.job import build
from mixdistill.training.loop import Outcome, run

RECIPES = Path(__file__).parent / "toy_recipes.py"


@pytest.fixture(scope="module")
def recipe(chain_shards, compiled):
    made = load(f"{RECIPES}:steered")
    return set_all(made, [f"stages.{k}.source.shards={chain_shards.path}" for k in (0, 1)])


def train(recipe, workdir, *hooks, devices=1) -> Outcome:
    return run(recipe, workdir, hooks=hooks, devices=jax.devices()[:devices], quiet=True)


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """The run that nothing happened to, and its workdir."""
    workdir = tmp_path_factory.mktemp("whole")
    return train(recipe, workdir), workdir


class Crash(Exception):
    """The process dies: nothing is saved on the way out."""


def crash(at: int):
    def hook(event) -> None:
        if event.kind == "train_step" and event.train_step == at:
            raise Crash

    return hook


def metrics(workdir: Path) -> list[dict]:
    """Without clocks, and what is a rate by them."""
    clocks = ("seconds", "clock", "spent")
    lines = read_metrics(workdir / METRICS_FILE)
    for line in lines:
        del line["metrics"]["tokens_per_second"], line["weights"]["tokens_per_second"]
    return [{k: v for k, v in line.items() if k not in clocks} for line in lines]


def place(outcome: Outcome) -> dict:
    return {k: v for k, v in outcome.position.to_json().items() if k != "seconds"}


def assert_same_run(outcome, workdir, whole):
    want, want_workdir = whole
    jax.tree.map(np.testing.assert_array_equal, outcome.state, want.state)
    assert place(outcome) == place(want)
    assert metrics(workdir) == metrics(want_workdir)
    assert list(read_ledger(workdir / LEDGER)) == list(read_ledger(want_workdir / LEDGER))


def test_the_router_steers_what_is_tested_here(whole, recipe):
    _, workdir = whole
    position = json.loads((workdir / FOLDER / "12" / "about" / "metadata").read_text())["position"]
    assert position["stage"] == 1
    weights, pending = position["pipeline"]["weights"], position["pipeline"]["pending"]
    assert len({round(w, 6) for w in weights}) == 3
    assert pending  # a change that is decided and not yet in force is part of the state


@pytest.mark.parametrize("at", [3, 6, 9, 14])
def test_a_crash_loses_nothing(at, recipe, whole, tmp_path):
    """Before the first checkpoint, after one in the first stage, just after one in the second, and after the last."""
    with pytest.raises(Crash):
        train(recipe, tmp_path, crash(at))
    assert_same_run(train(recipe, tmp_path), tmp_path, whole)


def test_sigkill_loses_nothing(recipe, whole, chain_shards, compiled, tmp_path):
    command = [sys.executable, str(RECIPES), str(chain_shards.path), str(tmp_path), "SIGKILL", "10"]
    done = subprocess.run(command, env=compiled, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert_same_run(train(recipe, tmp_path), tmp_path, whole)


@pytest.mark.parametrize(("number", "at"), [(signal.SIGTERM, 7), (signal.SIGINT, 11)])
def test_a_signal_saves_at_once_and_the_run_goes_on(number, at, recipe, whole, tmp_path):
    """Also where it cuts a line of the metrics short: of train steps 10 to 12, which is written all the same."""
    before = signal.getsignal(number)
    first = train(recipe, tmp_path, lambda event: _raise(event, number, at))
    assert first.stopped_by == number.name
    assert first.position.train_step == at
    assert (tmp_path / FOLDER / str(at)).is_dir()
    assert metrics(tmp_path)[-1]["train_step"] == at - 1
    assert_same_run(train(recipe, tmp_path), tmp_path, whole)
    assert signal.getsignal(number) is before


def _raise(event, number, at) -> None:
    if event.kind == "train_step" and event.train_step == at:
        signal.raise_signal(number)


def test_a_process_that_dies_just_after_it_went_on_from_a_signal_repeats_nothing(recipe, whole, tmp_path):
    """Train step 7 is in the checkpoint, its line in the ledger is not: the second process writes it, and dies."""
    train(recipe, tmp_path, lambda event: _raise(event, signal.SIGTERM, 7))
    with pytest.raises(Crash):
        train(recipe, tmp_path, crash(8))
    assert_same_run(train(recipe, tmp_path), tmp_path, whole)


def test_the_next_batch_is_the_one_that_would_have_come(recipe, whole, tmp_path):
    seen = []

    def hook(event) -> None:
        if event.kind == "checkpoint":
            seen.append(event.train_step)

    with pytest.raises(Crash):
        train(recipe, tmp_path, hook, crash(10))
    assert seen == [4, 5, 8]  # the first stage ends after 5
    job = build(recipe, jax.devices()[:1])
    batches = []
    for workdir in (tmp_path, whole[1]):
        about = json.loads((workdir / FOLDER / "8" / "about" / "metadata").read_text())
        position = _position(about)
        pipeline = job.pipeline(position)
        batches.append([next(pipeline) for _ in range(3)])
        pipeline.close()
    jax.tree.map(np.testing.assert_array_equal, *batches)


def _position(about):
    from mixdistill.training.position import Position

    return Position.from_json(about["position"])


def test_a_finished_run_stays_as_it_is(recipe, whole):
    outcome, workdir = whole
    before = {path: path.stat().st_mtime_ns for path in (workdir / FOLDER).rglob("*")}
    again = train(recipe, workdir)
    jax.tree.map(np.testing.assert_array_equal, again.state, outcome.state)
    assert {path: path.stat().st_mtime_ns for path in (workdir / FOLDER).rglob("*")} == before


def test_another_mesh_goes_on_to_the_same_numbers_up_to_summation_order(recipe, whole, tmp_path):
    with pytest.raises(Crash):
        train(recipe, tmp_path, crash(9))
    outcome = train(recipe, tmp_path, devices=4)
    assert len(outcome.state.params["up"].sharding.device_set) == 4
    assert place(outcome)["tokens"] == place(whole[0])["tokens"]
    got, want = jax.device_get((outcome.state, whole[0].state))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got.memory, want.memory)
    # Adam divides by sqrt(v): where the gradient is rounding noise so is its direction, up to the learning rate.
    same = jax.tree.map(lambda a, b: np.mean(np.abs(a - b) < 1e-4), got.params, want.params)
    assert min(jax.tree.leaves(same)) > 0.99


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.b1=0.8", "another recipe .optimizer.b1: 0.9 -> 0.8"),
        ("stages.1.objective.terms.imitate.gates.worst_token.threshold=1", "worst_token.threshold: 4.2 -> 1.0"),
    ],
)
def test_another_recipe_is_refused_and_nothing_changes(change, message, recipe, whole):
    workdir = whole[1]
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message):
        train(set_all(recipe, [change]), workdir)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_machine_and_logging_may_change(recipe, whole, tmp_path):
    with pytest.raises(Crash):
        train(recipe, tmp_path, crash(5))
    outcome = train(set_all(recipe, ["log_every=1", "checkpoint_every=7"]), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, outcome.state, whole[0].state)


def test_other_data_in_the_same_place_is_refused(recipe, tmp_path):
    shards, workdir = tmp_path / "shards", tmp_path / "work"
    moved = set_all(recipe, [f"stages.{k}.source.shards={shards}" for k in (0, 1)])
    write_world(CHAIN, shards, {"F": 40, "B": 40, "H": 40})
    with pytest.raises(Crash):
        train(moved, workdir, crash(5))
    write_world(CHAIN, shards, {"F": 40, "B": 40, "H": 40}, seed=1, overwrite=True)
    with pytest.raises(UserError, match="is not what this run began with"):
        train(moved, workdir)
    write_world(CHAIN, shards, {"F": 40, "B": 40}, overwrite=True)
    with pytest.raises(UserError, match="has learned from teachers B, F, H; the shards now have B, F"):
        train(moved, workdir)
