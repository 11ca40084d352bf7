"""Faults of the machine: slow, full and read-only disks, clocks that jump. The end is that of a run nobody touched."""

import contextlib
import os
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mixdistill.errors import UserError
from mixdistill.training.checkpoint import saved_train_steps
from mixdistill.training.history import LEDGER, read_ledger
from mixdistill.training.hooks import METRICS_FILE, read_metrics
from mixdistill.training.loop import Outcome
from tests.resume.test_trust import recipe, train


@pytest.fixture(scope="module")
def untouched(chain_shards, compiled, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("untouched")
    return left(workdir, train(recipe(chain_shards, steps=12), workdir))


def left(workdir: Path, outcome: Outcome) -> tuple:
    """State, ledger and metrics, but for clocks."""
    metrics = [(line["train_step"], line["metrics"]["loss"]) for line in read_metrics(workdir / METRICS_FILE)]
    return jax.device_get(outcome.state), list(read_ledger(workdir / LEDGER)), metrics


def same(found: tuple, wanted: tuple) -> None:
    jax.tree.map(np.testing.assert_array_equal, found[0], wanted[0])
    assert found[1:] == wanted[1:]


def test_a_slow_disk(chain_shards, untouched, tmp_path, monkeypatch):
    """Whatever makes a file durable or visible takes long: training goes on beside it, and waits for it at the end."""
    waited = []
    for name in ("rename", "replace", "fsync"):

        def slow(*args, _work=getattr(os, name), _name=name, **knobs):
            waited.append(_name)
            time.sleep(0.2)
            return _work(*args, **knobs)

        monkeypatch.setattr(os, name, slow)
    found = train(recipe(chain_shards, steps=12), tmp_path)
    monkeypatch.undo()
    assert {"rename", "fsync"} <= set(waited)
    same(left(tmp_path, found), untouched)
    assert saved_train_steps(tmp_path) == [8, 12]


def test_a_clock_that_jumps(chain_shards, untouched, tmp_path, monkeypatch):
    """By hours, back and forth, at every look."""
    real, looks, rng = time.time, [], np.random.default_rng(0)

    def jumping() -> float:
        looks.append(float(rng.choice([-7200, -3600, 0, 3600, 86400])))
        return real() + looks[-1]

    monkeypatch.setattr(time, "time", jumping)
    found = train(recipe(chain_shards, steps=12), tmp_path)
    monkeypatch.undo()
    assert len(set(looks)) == 5
    same(left(tmp_path, found), untouched)
    assert saved_train_steps(tmp_path) == [8, 12]


@pytest.fixture
def disk(tmp_path):
    """A disk of 8 MiB, and how to mount it again."""

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(tmp_path)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount a tmpfs")

    mount("size=8m")
    yield tmp_path, mount
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def fill(folder: Path) -> None:
    """To the last byte."""
    for size in (2**20, 4096, 1):
        with contextlib.suppress(OSError), (folder / f"ballast-{size}").open("wb", 0) as file:
            while True:
                file.write(bytes(size))


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # what orbax does where a write fails
@pytest.mark.parametrize("at", [4, 6])
def test_a_disk_that_fills_up_and_is_cleared(at, chain_shards, untouched, disk):
    """While a checkpoint is written (after train step 4), or between two."""
    folder, _ = disk
    made = recipe(chain_shards, steps=12)

    def hook(event) -> None:
        if event.kind == "train_step" and event.train_step == 6 and at == 6:
            while not saved_train_steps(folder / "work"):
                time.sleep(0.01)
        if event.train_step == at and event.kind == ("checkpoint" if at == 4 else "train_step"):
            fill(folder)

    with pytest.raises(UserError, match=r"disk of .* is full"):
        train(made, folder / "work", hook)
    assert saved_train_steps(folder / "work") in (([], [4]) if at == 4 else ([4],))
    for path in folder.glob("ballast-*"):
        path.unlink()
    same(left(folder / "work", train(made, folder / "work")), untouched)


def test_a_read_only_disk_is_refused_before_anything_is_computed(chain_shards, compiled, disk):
    folder, mount = disk
    mount("remount,ro")
    seen = []
    with pytest.raises(UserError, match="Read-only"):
        train(recipe(chain_shards, steps=12), folder / "work", seen.append)
    assert not seen
