import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixdistill.errors import UserError
from mixdistill.optimizers import Budget, OptimizerConfig, learning_rate, make_optimizer, progress

AXES = {"embed": {"table": ("vocab", "embed")}, "norm": {"scale": ("layers", "embed")}}
PARAMS = {"embed": {"table": jnp.ones((3, 4))}, "norm": {"scale": jnp.ones((2, 4))}}
STEPS = Budget(10, "train_steps")


def updates(config, budget=STEPS, gradients=PARAMS, tokens=jnp.float32(1), count=1):
    optimizer = make_optimizer(config, AXES, budget)
    state = optimizer.init(PARAMS)
    for _ in range(count):
        found, state = optimizer.update(gradients, state, PARAMS, tokens=tokens)
    return found, state


def test_the_schedule_rises_then_falls():
    config = OptimizerConfig(learning_rate=2.0, warmup=0.2, final=0.1)
    rates = [float(learning_rate(config, done)) for done in (0.0, 0.1, 0.2, 0.6, 1.0, 1.5)]
    np.testing.assert_allclose(rates, [0.0, 1.0, 2.0, 1.1, 0.2, 0.2], rtol=1e-6)
    assert float(learning_rate(OptimizerConfig(learning_rate=2.0, warmup=0.0), 0.0)) == 2.0


def test_progress_counts_train_steps_or_tokens():
    config = OptimizerConfig(warmup=0.0)
    assert float(progress(updates(config, count=3)[1])) == pytest.approx(0.3)
    by_tokens = updates(config, Budget(1000, "tokens"), tokens=jnp.float32(150), count=2)[1]
    assert float(progress(by_tokens)) == pytest.approx(0.3)
    assert np.isnan(float(progress(optax.sgd(1.0).init(PARAMS))))


def test_equals_optax_adamw():
    config = OptimizerConfig(learning_rate=0.1, warmup=0.0, final=1.0, clip=None, weight_decay=0.0)
    reference = optax.adamw(0.1, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=0.0)
    gradients = jax.tree.map(lambda p: p * 0.3, PARAMS)
    want, _ = reference.update(gradients, reference.init(PARAMS), PARAMS)
    got, _ = updates(config, gradients=gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)


def test_matrices_decay_and_stacked_vectors_do_not():
    nothing = jax.tree.map(jnp.zeros_like, PARAMS)
    found, _ = updates(OptimizerConfig(learning_rate=1.0, warmup=0.0, weight_decay=0.5), gradients=nothing)
    np.testing.assert_allclose(found["embed"]["table"], -0.5)
    np.testing.assert_array_equal(found["norm"]["scale"], 0.0)


def test_frozen_parameters_do_not_move_and_have_no_moments():
    config = OptimizerConfig(warmup=0.0, weight_decay=0.5, frozen=("embed/*",))
    found, state = updates(config)
    np.testing.assert_array_equal(found["embed"]["table"], 0.0)
    assert np.all(found["norm"]["scale"] != 0.0)
    assert not [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (3, 4)]


def test_a_pattern_that_freezes_nothing_names_the_nearest_path():
    with pytest.raises(UserError, match=r"'embde/table'; did you mean 'embed/table'"):
        make_optimizer(OptimizerConfig(frozen=("embde/table",)), AXES, STEPS)


@pytest.mark.parametrize("field", ["warmup", "final", "learning_rate", "b1", "clip"])
def test_values_out_of_range_are_refused(field):
    with pytest.raises(UserError, match=f"optimizer {field} is -1"):
        OptimizerConfig(**{field: -1.0})


@pytest.mark.parametrize(("moments", "numbers"), [("float32", 2.0), ("bfloat16", 2.0), ("factored", 0.006)])
def test_moments_take_the_room_that_is_said_and_descend(moments, numbers):
    axes = {"w": ("embed", "mlp")}
    params = {"w": jnp.ones((256, 512))}
    config = OptimizerConfig(learning_rate=0.1, warmup=0.0, weight_decay=0.0, moments=moments)
    optimizer = make_optimizer(config, axes, STEPS)
    state = optimizer.init(params)
    kept = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert kept / params["w"].size == pytest.approx(numbers, abs=0.001)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / params["w"].nbytes
    assert size == pytest.approx({"float32": 2.0, "bfloat16": 1.5, "factored": 0.006}[moments], abs=0.001)
    for _ in range(5):
        updates, state = optimizer.update(params, state, params, tokens=jnp.float32(1))  # of half the sum of squares
        params = optax.apply_updates(params, updates)
    assert 0.3 < float(params["w"].mean()) < 0.9
    with pytest.raises(UserError, match="unknown optimizer moments 'int8'"):
        OptimizerConfig(moments="int8")
