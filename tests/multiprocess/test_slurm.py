"""Under real SLURM. A job of two tasks: ended by SIGTERM, put back into the queue, it goes on as if nothing had been. A
study: an array of rows, then its table."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mixdistill.recipe import load, set_all
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world
from mixdistill.training.loop import run
from tests.multiprocess import slurm_cluster

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slurm,
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing() or "it is there"),
]
RECIPES = Path(__file__).parents[1] / "resume" / "toy_recipes.py"
TOY_STUDY = Path(__file__).parents[1] / "cli" / "toy_study.py"
TRAIN_STEPS = 600


@pytest.fixture(scope="module")
def environment():
    with slurm_cluster.cluster() as found:
        yield found


def test_terminated_and_requeued_it_is_the_uninterrupted_run(environment, tmp_path):
    shards = tmp_path / "shards"
    write_world(CHAIN, shards, {"F": 40, "B": 40, "H": 40})
    changes = [f"stages.{k}.source.shards={shards}" for k in (0, 1)]
    changes += [f"stages.1.num_train_steps={TRAIN_STEPS - 5}", "log_every=20", "checkpoint_every=100000"]
    recipe = set_all(load(f"{RECIPES}:steered"), changes)
    want = run(recipe, tmp_path / "whole", devices=jax.devices()[:2], quiet=True)

    slurm = Slurm(tmp_path, environment)
    number = slurm.submit(changes)
    slurm.wait(number, lambda: slurm.last_train_step() >= 40)
    slurm("scancel", "--signal=TERM", number)
    slurm.wait(number, lambda: "COMPLETED" in slurm.about(number))
    assert "ExitCode=0:0" in slurm.about(number)
    log = (tmp_path / f"steered-{number}.log").read_text()
    stopped = re.findall(r"stopped by SIGTERM after (\d+) train steps", log)
    assert len(stopped) == 1, log
    saved = [int(path.name) for path in (tmp_path / "w" / "checkpoints").iterdir() if path.name.isdecimal()]
    # At the end of the first stage, and the one on which both tasks agreed.
    assert sorted(saved) == [5, int(stopped[0])]
    assert 40 <= max(saved) < TRAIN_STEPS

    slurm("scontrol", "requeue", number)
    slurm.wait(number, lambda: "PENDING" in slurm.about(number) or "Restarts=1" in slurm.about(number))
    subprocess.run(["scontrol", "update", f"jobid={number}", "starttime=now"], env=environment, check=False)
    slurm.wait(number, lambda: "JobState=COMPLETED" in slurm.about(number) and "Restarts=1" in slurm.about(number))
    log = (tmp_path / f"steered-{number}.log").read_text()
    assert "start 1 of job" in log
    assert f"finished: {TRAIN_STEPS} train steps" in log

    outcome = run(recipe, tmp_path / "w", devices=jax.devices()[:2], quiet=True)  # done already: it only reads
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(outcome.state), jax.device_get(want.state))
    assert _losses(tmp_path / "whole") == _losses(tmp_path / "w")


def test_a_study_is_an_array_of_rows_and_then_a_table(environment, tmp_path):
    slurm, study = Slurm(tmp_path, environment), f"{TOY_STUDY}:study"
    slurm("mixdistill", "sweep", study, "--on", "slurm", "--runs", "runs", "--out", "results")
    deadline = time.monotonic() + 300
    while not (tmp_path / "results" / "report.html").exists():
        logs = {path.name: path.read_text() for path in (tmp_path / "runs").glob("*.log")}
        assert time.monotonic() < deadline, (slurm("squeue"), logs)
        time.sleep(0.2)
    lines = (tmp_path / "results" / "runs.jsonl").read_text().splitlines()
    assert len(lines) == 9
    assert len(list((tmp_path / "runs").glob("rows-*.log"))) == 9


def _losses(workdir: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) >= TRAIN_STEPS // 20
    return {row["train_step"]: row["metrics"]["loss"] for row in rows}


class Slurm:
    """Its commands, in one cluster."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder = folder
        hidden = ("XLA_FLAGS",)
        scripts = str(Path(sys.executable).parent)
        self.environment = {name: value for name, value in environment.items() if name not in hidden}
        self.environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # as here; but one device a task
        self.environment["PATH"] = f"{scripts}{os.pathsep}{environment['PATH']}"

    def __call__(self, *words: str) -> str:
        done = subprocess.run(words, env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def submit(self, changes: list[str]) -> str:
        words = [
            "mixdistill",
            "launch",
            f"{RECIPES}:steered",
            "--on",
            "slurm",
            "--processes",
            "2",
            "--env",
            "XLA_FLAGS",
        ]
        words += ["--workdir", str(self.folder / "w"), "--out", "job.sbatch", "--submit"]
        words += [word for change in changes for word in ("--set", change)]
        return re.search(r"Submitted batch job (\d+)", self(*words))[1]

    def about(self, number: str) -> str:
        return self("scontrol", "show", "job", number)

    def last_train_step(self) -> int:
        metrics = self.folder / "w" / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        return json.loads(lines[-1])["train_step"] if lines else -1

    def wait(self, number: str, until, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            log = self.folder / f"steered-{number}.log"
            assert time.monotonic() < deadline, (self.about(number), log.read_text() if log.exists() else "no log")
            time.sleep(0.2)
