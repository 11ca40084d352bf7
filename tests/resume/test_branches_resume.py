"""Branches and averages in whole runs: cut anywhere they end the same; pilots decide who is in the stages after."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from mixdistill.data.mixture import Mixture
from mixdistill.errors import UserError
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.optimizers import OptimizerConfig
from mixdistill.recipe import Recipe, Stage, load
from mixdistill.recipe.parameters import Merge, PilotMix, TeacherGradients
from mixdistill.training.hooks import read_metrics
from mixdistill.training.job import build
from mixdistill.training.loop import run
from mixdistill.training.workdir import open_trained

TOY = load(f"{Path(__file__).parent / 'toy_recipes.py'}:steered").student
IMITATE = Objective({"imitate": Term(cross_entropy)})


def train(recipe, workdir, *hooks):
    return run(recipe, workdir, hooks=hooks, devices=jax.devices()[:1], quiet=True)


def cut(at):
    def hook(event):
        if event.kind == "train_step" and event.train_step == at:
            raise KeyboardInterrupt

    return hook


def recipe_of(shards, *stages, **more):
    return Recipe(
        name="branches",
        student=TOY,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        stages=stages,
        log_every=1,
        checkpoint_every=1,
        keep_checkpoints=99,
        **more,
    )


def mixture(shards, **changes):
    return Mixture(**{"shards": str(shards.path), "rows": 8, "length": 24, **changes})


def test_rounds_of_branches_cut_in_the_middle_end_the_same(chain_shards, compiled, tmp_path):
    """Two rounds of three branches of two train steps: the budget asks for seven, and whole rounds are trained."""
    anchor = Stage("anchor", 1, mixture(chain_shards, weights={"F": 1.0}), IMITATE)
    merge = Stage(
        "merge",
        7,
        mixture(chain_shards, turns=2),
        branches=Merge(weights={"F": 2.0, "H": 1.0, "B": 1.0}),
        teacher_gradients=TeacherGradients(project=False),
    )
    recipe = recipe_of(chain_shards, anchor, merge)
    whole = train(recipe, tmp_path / "whole")
    assert whole.position.train_step == 1 + 12
    lines = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    taught = [{name for name, count in line["weights"]["teacher/tokens"].items() if count} for line in lines]
    assert taught == [{"F"}] + [{"B"}, {"B"}, {"F"}, {"F"}, {"H"}, {"H"}] * 2
    assert [line["metrics"].get("branch") for line in lines] == [None] + [0, 0, 1, 1, 2, 2] * 2
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", cut(6))
    resumed = train(recipe, tmp_path / "cut")
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)


def test_pilots_decide_who_is_in_later_stages(chain_shards, compiled, tmp_path):
    anchor = Stage("anchor", 2, mixture(chain_shards, weights={"F": 1.0}), IMITATE)
    pilots = Stage("pilots", 99, mixture(chain_shards, turns=2, anchor="F"), branches=PilotMix(limit=0.0))
    pool = Stage("pool", 3, mixture(chain_shards, weights={"F": 1.0, "B": 1.0, "H": 1.0}))
    recipe = recipe_of(chain_shards, anchor, pilots, pool)
    outcome = train(recipe, tmp_path / "none")
    lines = read_metrics(tmp_path / "none" / "metrics.jsonl")
    taught = [{name for name, count in line["weights"]["teacher/tokens"].items() if count} for line in lines]
    assert taught == [{"F"}] * 2 + [{"B", "F"}] * 2 + [{"F", "H"}] * 2 + [{"F"}] * 3  # whoever is not admitted is out
    # What the pilots saw counts as seen.
    assert outcome.position.tokens == sum(sum(line["weights"]["teacher/tokens"].values()) for line in lines)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", cut(7))
    resumed = train(recipe, tmp_path / "cut")
    jax.tree.map(np.testing.assert_array_equal, resumed.state, outcome.state)
    easy = dataclasses.replace(pilots, branches=PilotMix(limit=99.0))
    train(dataclasses.replace(recipe, stages=(anchor, easy, pool)), tmp_path / "all")
    last = read_metrics(tmp_path / "all" / "metrics.jsonl")[-1]
    assert all(last["weights"]["teacher/tokens"].values())


def test_the_average_is_saved_and_judged(chain_shards, compiled, tmp_path):
    recipe = recipe_of(chain_shards, Stage("one", 4, mixture(chain_shards), IMITATE), average=0.5)
    whole = train(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", cut(3))
    resumed = train(recipe, tmp_path / "cut")
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)
    different = jax.tree.map(lambda a, b: bool((a != b).any()), whole.state.memory["average"], whole.state.params)
    assert all(jax.tree.leaves(different))
    saved = open_trained(tmp_path / "cut", recipe=recipe)
    jax.tree.map(np.testing.assert_array_equal, saved.params, whole.state.memory["average"])
    saved = open_trained(tmp_path / "cut", recipe=recipe, averaged=False)
    jax.tree.map(np.testing.assert_array_equal, saved.params, whole.state.params)


@pytest.mark.parametrize(
    ("changes", "stage", "more", "message"),
    [
        ({}, {"branches": Merge()}, {}, "needs turns"),
        ({"turns": 2}, {"branches": PilotMix()}, {}, "go together"),
        ({"turns": 2, "anchor": "F"}, {"branches": Merge()}, {}, "go together"),
        ({"turns": 2}, {"branches": Merge(weights={"f": 1.0})}, {}, r"branch 'f'.*F"),
        ({"turns": 2, "anchor": "f"}, {"branches": PilotMix()}, {}, r"anchor 'f'.*F"),
        ({"turns": 2, "anchor": "F", "teachers": ("F",)}, {"branches": PilotMix()}, {}, "all need a weight"),
        ({"turns": 2}, {"branches": Merge()}, {"average": 0.9}, "averages parameters and has branches"),
        ({}, {}, {"average": 1.5}, "average is 1.5"),
        ({}, {"teacher_gradients": TeacherGradients(towards="f")}, {}, r"'f'.*F"),
    ],
)
def test_what_does_not_fit_is_said_when_the_job_is_built(changes, stage, more, message, chain_shards):
    with pytest.raises(UserError, match=message):
        build(recipe_of(chain_shards, Stage("one", 4, mixture(chain_shards, **changes), IMITATE, **stage), **more))
