"""Branches and averages in whole runs: cut anywhere they end the same; pilots decide who is in the stages after."""

import dataclasses
import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mixdistill.data.mixture import Mixture
from mixdistill.errors import UserError
from mixdistill.generation.rollouts import HeldOut
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.optimizers import OptimizerConfig
from mixdistill.recipe import Recipe, Stage, load
from mixdistill.recipe.parameters import Merge, PilotMix, TeacherGradients
from mixdistill.training.history import read_ledger
from mixdistill.training.hooks import read_metrics
from mixdistill.training.job import build
from mixdistill.training.loop import run
from mixdistill.training.spending import in_all
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


INTERRUPT: list[bool] = []


def remainder(rollouts):
    """Stands for a verifier: the student here solves nothing, and its answers change as it learns. May send a signal
    in the middle of its work."""
    if INTERRUPT:
        INTERRUPT.clear()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    return [1 - sum(map(ord, rollout.text)) % 7 / 7 for rollout in rollouts]


def of_train_step(lines, name):
    return {line["train_step"]: line["metrics"][name] for line in lines if name in line["metrics"]}


def without_clocks(line):
    return {name: value for name, value in line["metrics"].items() if name not in ("mfu", "tokens_per_second")}


def test_pilots_judged_by_their_answers_cut_in_the_middle_end_the_same(chain_shards, compiled, tmp_path):
    """The control and two candidates, of two train steps each. Stopped while the control is being asked,
    and killed in the last pilot."""
    exam = HeldOut(shards=str(chain_shards.path), judges={"remainder": remainder}, every=99, problems=16, max_new=6)
    pilots = Stage(
        "pilots",
        99,
        mixture(chain_shards, turns=2, anchor="F", control=True),
        IMITATE,
        branches=PilotMix(limit=99.0, slack=0.0),
        held_out=exam,
    )
    pool = Stage("pool", 2, mixture(chain_shards, weights={"F": 1.0, "B": 1.0, "H": 1.0}))
    recipe = dataclasses.replace(
        recipe_of(chain_shards, pilots, pool), optimizer=OptimizerConfig(learning_rate=0.3, warmup=0.0)
    )
    whole = train(recipe, tmp_path / "whole")
    lines = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    taught = [{name for name, count in line["weights"]["teacher/tokens"].items() if count} for line in lines]
    assert taught[:6] == [{"F"}] * 2 + [{"B", "F"}] * 2 + [{"F", "H"}] * 2
    right = of_train_step(lines, "held_out/remainder")
    assert list(right) == [2, 4, 6]  # when a pilot ends, whatever `every` says
    (said,) = [line for line in read_ledger(tmp_path / "whole" / "ledger.jsonl") if line.get("event") == "pilots"]
    assert said["accuracy"] == pytest.approx({"F": right[2], "B": right[4], "H": right[6]}, abs=1e-5)
    passed = [name for name, step in (("B", 4), ("H", 6)) if right[step] >= right[2]]
    assert said["admitted"] == ["F", *passed]
    assert len(passed) == 1  # the answers do tell the candidates apart
    assert said["judge"] == "remainder"
    assert all(who <= {"F", *passed} for who in taught[6:])
    assert all(line["metrics"].get("answers/flops", 1) > 0 for line in lines)
    answered = of_train_step(lines, "answers/tokens")
    assert in_all(lines).drawn == sum(answered.values())
    assert in_all(lines).drawing < in_all(lines).flops

    INTERRUPT.append(True)
    stopped = train(recipe, tmp_path / "cut")
    assert stopped.stopped_by
    assert stopped.position.pending
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", cut(6))
    resumed = train(recipe, tmp_path / "cut")
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)
    again = read_metrics(tmp_path / "cut" / "metrics.jsonl")
    assert [without_clocks(line) for line in again] == [without_clocks(line) for line in lines]


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


EXAM = HeldOut(shards="nowhere", judges={"remainder": remainder}, every=1)


@pytest.mark.parametrize(
    ("changes", "stage", "more", "message"),
    [
        ({}, {"branches": Merge()}, {}, "needs turns"),
        ({"turns": 2}, {"branches": PilotMix()}, {}, "go together"),
        ({"turns": 2, "anchor": "F"}, {"branches": Merge()}, {}, "go together"),
        ({"turns": 2}, {"branches": Merge(weights={"f": 1.0})}, {}, r"branch 'f'.*F"),
        ({"turns": 2, "anchor": "f"}, {"branches": PilotMix()}, {}, r"anchor 'f'.*F"),
        ({"turns": 2, "control": True}, {"branches": Merge()}, {}, "name the anchor"),
        ({"turns": 2, "anchor": "F", "control": True}, {"branches": PilotMix()}, {}, r"control=False"),
        ({"turns": 2, "anchor": "F"}, {"branches": PilotMix(), "held_out": EXAM}, {}, r"control=True.*own_nll"),
        (
            {"turns": 2, "anchor": "F", "control": True},
            {"branches": PilotMix(judge="od"), "held_out": EXAM},
            {},
            "'od'.*remainder",
        ),
        ({"turns": 2, "anchor": "F", "teachers": ("F",)}, {"branches": PilotMix()}, {}, "all need a weight"),
        ({"turns": 2}, {"branches": Merge()}, {"average": 0.9}, "averages parameters and has branches"),
        ({}, {}, {"average": 1.5}, "average is 1.5"),
        ({}, {"teacher_gradients": TeacherGradients(towards="f")}, {}, r"'f'.*F"),
    ],
)
def test_what_does_not_fit_is_said_when_the_job_is_built(changes, stage, more, message, chain_shards):
    with pytest.raises(UserError, match=message):
        build(recipe_of(chain_shards, Stage("one", 4, mixture(chain_shards, **changes), IMITATE, **stage), **more))
