"""Checkpoints: all of it or nothing, with what it was made from; parameters alone."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.base import smoke
from mixdistill.errors import UserError
from mixdistill.recipe import fingerprint, set_path, show
from mixdistill.training.checkpoint import FOLDER, Checkpoint, Checkpoints, Identity
from mixdistill.training.state import TrainState

POSITION = {"train_step": 3, "pipeline": {"cursor": [1, 2], "credit": [0.1 + 0.2, -1e-17]}}


def identity(recipe=None, **changes) -> Identity:
    recipe = recipe or smoke()
    made = Identity(show(recipe), fingerprint(recipe), ("ann", "bob"), "a" * 64, "here:smoke")
    return dataclasses.replace(made, **changes)


def state(value: float = 1.0) -> TrainState:
    params = {"embed": {"table": jnp.full((4, 2), value)}, "norm": jnp.ones(2, jnp.bfloat16)}
    memory = {"seen": {"value": jnp.array([0.5, np.nan]), "num_updates": jnp.array([3, 0])}}
    return TrainState(jnp.int32(3), params, ({"mu": params}, jnp.int32(7)), memory)


def like(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    with Checkpoints(workdir, keep=2) as checkpoints:
        assert checkpoints.latest() is None
        for train_step, value in ((1, 1.0), (2, 2.0), (3, 3.0)):
            checkpoints.save(train_step, Checkpoint(state(value), POSITION, identity()))
        checkpoints.save(3, Checkpoint(state(9.0), POSITION, identity()))  # is there already: left as it is
    return workdir


def test_what_comes_back_is_what_was_saved(saved):
    with Checkpoints(saved, keep=2) as checkpoints:
        assert checkpoints.all() == [2, 3]
        found = checkpoints.restore(3, like(state()), identity())
    jax.tree.map(np.testing.assert_array_equal, found.state, state(3.0))
    assert jax.tree.map(lambda x: x.dtype, found.state) == jax.tree.map(lambda x: x.dtype, state())
    assert (found.position, found.identity) == (POSITION, identity())


def test_parameters_alone(saved):
    with Checkpoints(saved, keep=2) as checkpoints:
        found = checkpoints.restore_params(2, like(state()).params)
    jax.tree.map(np.testing.assert_array_equal, found, state(2.0).params)


def test_a_checkpoint_that_was_not_finished_is_not_there(saved):
    unfinished = saved / FOLDER / "4.orbax-checkpoint-tmp"
    unfinished.mkdir()
    with Checkpoints(saved, keep=2) as checkpoints:
        assert checkpoints.latest() == 3
    unfinished.rmdir()


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (identity(teachers=("ann", "cid")), "learned from teachers ann, bob; the shards now have ann, cid"),
        (identity(tokenizer="b" * 64), "made with tokenizer aaaaaaaaaaaa, the shards now have bbbbbbbbbbbb"),
        (identity(set_path(smoke(), "seed", "5")), r"a run of another recipe \(seed: 0 -> 5\)"),
        (identity(fingerprint="0" * 64), r"a run of another recipe \(its code\)"),
    ],
)
def test_a_run_goes_on_only_from_its_own(now, message, saved):
    with Checkpoints(saved, keep=2) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore(3, like(state()), now)


def test_how_the_recipe_was_named_does_not_matter(saved):
    with Checkpoints(saved, keep=2) as checkpoints:
        assert checkpoints.restore(3, like(state()), identity(command="there:smoke")).identity == identity()
