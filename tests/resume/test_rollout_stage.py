"""Imitate until held-out accuracy is flat, then refine: one recipe, one workdir. A stop between two updates on one
batch of rollouts loses nothing, and how often is checkpointed does not change when a stage ends."""

import dataclasses

import jax
import numpy as np
import pytest

from mixdistill.data.mixture import Mixture
from mixdistill.errors import UserError
from mixdistill.generation.drawn import ADVANTAGE
from mixdistill.generation.judges import exact_answer
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
