"""Imitate until held-out accuracy is flat, then refine: one recipe, one workdir. A stop between two updates on one
batch of rollouts loses nothing, and how often is checkpointed does not change when a stage ends."""

import contextlib
import dataclasses
import os
import signal
import socket
import threading

import jax
import numpy as np
import pytest

from mixdistill.data.mixture import Mixture
from mixdistill.errors import UserError
from mixdistill.generation.drawn import ADVANTAGE
from mixdistill.generation.judges import exact_answer
from mixdistill.generation.remote import Server
from mixdistill.generation.rollouts import SELF, HeldOut, Rollouts
from mixdistill.losses.cross_entropy import cross_entropy
from mixdistill.losses.policy_gradient import policy_gradient
from mixdistill.objective import Objective, Term
from mixdistill.optimizers import OptimizerConfig
from mixdistill.recipe import Recipe, Stage
from mixdistill.recipe.handover import Plateau
from mixdistill.routers import acceptance
from mixdistill.students.families import tiny
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world
from mixdistill.training.checkpoint import saved_train_steps
from mixdistill.training.hooks import read_metrics
from mixdistill.training.loop import run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    shards = tmp_path_factory.mktemp("refine") / "shards"
    write_world(CHAIN, shards, {"F": 40}, seed=0)
    rollouts = Rollouts(
        shards=str(shards),
        judges={"answer": exact_answer},
        weights={"answer": 1.0},
        prompts=2,
        samples=4,
        max_prompt=8,
        max_new=8,
        updates=2,
    )
    imitate = Stage(
        "imitate",
        9,
        Mixture(shards=str(shards), rows=8, length=16),
        Objective({"nll": Term(cross_entropy)}),
        until=(Plateau("held_out/answer", patience=1, margin=1.0),),
        held_out=HeldOut(shards=str(shards), judges={"answer": exact_answer}, every=1, problems=8, max_new=8),
    )
    refine = Stage("refine", 4, rollouts, Objective({"reward": Term(policy_gradient)}, fields=(ADVANTAGE,)))
    return Recipe(
        name="refine",
        student=dataclasses.replace(tiny(CHAIN.tokenizer().vocab_size), layers=1, unroll=1),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        stages=(imitate, refine),
        mesh={"fsdp": -1},
        log_every=1,
        checkpoint_every=1,
        keep_checkpoints=9,
    )


def stop_at(train_step):
    def hook(event):
        if event.kind == "train_step" and event.train_step == train_step:
            raise KeyboardInterrupt

    return hook


def test_a_run_cut_between_two_updates_ends_the_same(recipe, tmp_path):
    seldom = dataclasses.replace(recipe, checkpoint_every=100)
    whole = run(seldom, tmp_path / "whole", devices=jax.devices()[:1], quiet=True)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "cut", devices=jax.devices()[:1], quiet=True, hooks=[stop_at(5)])
    resumed = run(recipe, tmp_path / "cut", devices=jax.devices()[:1], quiet=True)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)
    lines = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [line["metrics"].get("rollout/stale") for line in lines] == [None, None, None, 0, 1, 0, 1]
    assert ["rollout/reward" in line["metrics"] for line in lines] == [False, False, False, True, False, True, False]
    assert ["held_out/answer" in line["metrics"] for line in lines] == [True] * 3 + [False] * 4
    assert lines[-1]["metrics"]["teacher/tokens"][SELF] > 0
    for outcome in (whole, resumed):
        # The first look is the best one, the second ends the stage one train step later.
        assert [(one["stage"], one["train_step"]) for one in outcome.position.ended] == [("imitate", 3), ("refine", 7)]
        assert "Plateau" in outcome.position.ended[0]["reason"]
        assert outcome.position.ended[1]["reason"] == "budget"


def test_a_router_cannot_steer_rollouts(recipe, tmp_path):
    routed = Objective({"reward": Term(policy_gradient)}, fields=(ADVANTAGE,), memory={"refill": acceptance()})
    stages = (recipe.stages[0], dataclasses.replace(recipe.stages[1], objective=routed))
    with pytest.raises(UserError, match="router refill"):
        run(dataclasses.replace(recipe, stages=stages), tmp_path / "w", devices=jax.devices()[:1], quiet=True)
    assert not (tmp_path / "w").exists()


@pytest.fixture
def silent():
    """A server that takes connections and never answers: its port, and what to do at the first connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        at_first = []

        def serve() -> None:
            held = []
            with contextlib.suppress(OSError):  # closed at the end
                while True:
                    held.append(listening.accept())
                    if at_first:
                        at_first.pop()()

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1], at_first


def asking(recipe: Recipe, port: int, timeout: float) -> Recipe:
    """2 train steps on traces, then rollouts by a server."""
    server = Server(f"http://127.0.0.1:{port}/v1", "m", timeout=timeout, retries=0)
    refine = dataclasses.replace(recipe.stages[1], source=dataclasses.replace(recipe.stages[1].source, server=server))
    imitate = dataclasses.replace(recipe.stages[0], num_train_steps=2, until=(), held_out=None)
    return dataclasses.replace(recipe, stages=(imitate, refine))


def test_a_server_that_hangs_is_waited_for_so_long_and_no_longer(recipe, silent, tmp_path):
    port, _ = silent
    with pytest.raises(UserError, match="no answer in time"):
        run(asking(recipe, port, 0.3), tmp_path, devices=jax.devices()[:1], quiet=True)
    assert saved_train_steps(tmp_path) == [1, 2]


def test_a_signal_does_not_wait_for_a_server_that_hangs(recipe, silent, tmp_path):
    port, at_first = silent
    at_first.append(lambda: os.kill(os.getpid(), signal.SIGTERM))
    outcome = run(asking(recipe, port, 600.0), tmp_path, devices=jax.devices()[:1], quiet=True)
    assert (outcome.stopped_by, outcome.position.train_step) == ("SIGTERM", 2)
    assert saved_train_steps(tmp_path) == [1, 2]
