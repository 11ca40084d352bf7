"""PCGrad within a train step against its definition on whole vectors; sketches against the gradients they stand for."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from mixdistill.errors import UserError
from mixdistill.gates.worst_token import worst_token
from mixdistill.losses.cross_entropy import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.optimizers import Budget, OptimizerConfig, make_optimizer
from mixdistill.recipe.parameters import TeacherGradients
from mixdistill.routers import gradient_alignment
from mixdistill.signals.signal import use
from mixdistill.training import conflicts, step
from mixdistill.training.conflicts import coefficients, gradient_of_teachers, measured
from mixdistill.training.state import TrainState, initial_memory
from tests.unit.bigram import AXES, bigram

V, D, TEACHERS = 11, 6, ("a", "b", "c")


STUDENT = bigram(V, D)
EMBED = jax.random.normal(jax.random.key(1), (V, D))
PARAMS = {"embed": EMBED, "unembed": 0.4 * EMBED.T}  # believes in teacher a, who repeats what it reads
FLAT, UNFLATTEN = jax.flatten_util.ravel_pytree(PARAMS)


def opposed_batch(teachers=(0, 1, 2, 0), length=12):
    """Teacher b says something else than a after the same tokens."""
    rng = np.random.default_rng(0)
    shape = (len(teachers), length)
    tokens = rng.integers(0, V, (1, length), dtype=np.int32).repeat(len(teachers), axis=0)
    valid = rng.random(shape) < 0.8
    return {
        "tokens": tokens,
        "target": (tokens + np.array(teachers, np.int32)[:, None]) % V,
        "valid": valid,
        "segment_id": np.ones(shape, np.int32),
        "position": np.arange(length, dtype=np.int32)[None].repeat(len(teachers), axis=0),
        "step_id": valid.astype(np.int32),
        "teacher_id": np.array(teachers, np.int32)[:, None].repeat(length, axis=1),
        "trace_id": np.zeros(shape, np.int32),
        "content": valid,
    }


def objective(**more):
    return Objective({"imitate": Term(cross_entropy, gates=(use(worst_token, threshold=9.0),))}, **more).with_teachers(
        TEACHERS
    )


def nll(params, batch, teacher):
    logits = params["embed"][batch["tokens"]] @ params["unembed"]
    lost = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["target"][..., None], axis=-1)[..., 0]
    return jnp.where(batch["valid"] & (batch["teacher_id"] == teacher), lost, 0.0).sum() / batch["valid"].sum()


def of_teachers(batch) -> np.ndarray:
    """Every teacher's gradient as a vector, by hand."""
    return np.stack([jax.flatten_util.ravel_pytree(jax.grad(nll)(PARAMS, batch, k))[0] for k in range(3)])


def pcgrad(vectors, key) -> np.ndarray:
    """The definition, with the orders that `coefficients` draws."""
    total = np.zeros(vectors.shape[1])
    for i, own in enumerate(jax.random.split(key, len(vectors))):
        gradient = vectors[i].astype(np.float64)
        for k in np.asarray(jax.random.permutation(own, len(vectors))):
            if k != i and (against := gradient @ vectors[k]) < 0:
                gradient = gradient - against / (vectors[k] @ vectors[k]) * vectors[k]
        total += gradient
    return total


@functools.partial(jax.jit, static_argnames=("setting", "parts"))
def compute(batch, setting, parts=1):
    given = (objective(), STUDENT, PARAMS, batch, parts, {"train_step": 3, "memory": {}})
    gradient, total, tallies = gradient_of_teachers(setting, *given, step._accumulate)
    return jax.flatten_util.ravel_pytree(gradient)[0], total, tallies


@pytest.mark.parametrize("seed", range(8))
def test_coefficients_are_those_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(4, 3)).astype(np.float32)
    vectors[seed % 4] *= seed > 3  # a teacher without data
    key = jax.random.key(seed)
    found = np.asarray(coefficients(jnp.asarray(vectors @ vectors.T), key))
    assert (found >= 1 - 1e-6).all()
    np.testing.assert_allclose(found @ vectors, pcgrad(vectors, key), rtol=1e-3, atol=1e-4)


def test_cosines_by_hand():
    vectors = np.array([[1.0, 0], [0, 2], [-3, 0], [0, 0]])
    cosine, weight = measured(jnp.asarray(vectors @ vectors.T), None)["teacher/gradient_cosine"]
    # The others of the first are (-3, 2), of the second (-2, 0), of the third (1, 2).
    np.testing.assert_allclose(cosine, [-3 / 13**0.5, 0, -1 / 5**0.5, 0], atol=1e-6)
    np.testing.assert_array_equal(weight, [1, 1, 1, 0])
    found = measured(jnp.asarray(vectors @ vectors.T), 0)
    np.testing.assert_allclose(found["teacher/gradient_cosine"].sum, [1, 0, -1, 0], atol=1e-6)
    assert [float(x) for x in found["gradient/opposed"]] == [1, 3]


@pytest.mark.parametrize("parts", [1, 2])
def test_exact_gradients_are_those_of_each_teacher_alone(parts):
    batch = opposed_batch()
    vectors, key = of_teachers(batch), jax.random.fold_in(jax.random.key(0), 3)
    gradient, total, tallies = compute(batch, TeacherGradients(mode="exact"), parts)
    assert (vectors @ vectors.T).min() < -1e-3  # there is something to project
    np.testing.assert_allclose(gradient, pcgrad(vectors, key), rtol=1e-3, atol=1e-5)
    want = measured(jnp.asarray(vectors @ vectors.T), None)["teacher/gradient_cosine"]
    np.testing.assert_allclose(tallies["teacher/gradient_cosine"].sum, want.sum, atol=1e-4)
    assert total.loss.shape == (1,)


@pytest.mark.parametrize("mode", ["exact", "sketch"])
def test_without_projection_the_gradient_is_the_usual_one(mode):
    batch = opposed_batch()
    gradient, *_ = compute(batch, TeacherGradients(mode=mode, project=False))
    np.testing.assert_allclose(gradient, of_teachers(batch).sum(axis=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 2])
def test_sketches_stand_for_the_gradient_of_a_layer_on_top(parts, monkeypatch):
    monkeypatch.setattr(conflicts, "SIDE", 700 + parts)  # wide: products are nearly exact; another shape, traced anew
    batch = opposed_batch()

    def on_top(matrix, teacher):
        return nll({"embed": PARAMS["embed"] @ matrix, "unembed": PARAMS["unembed"]}, batch, teacher)

    tops = np.stack([np.ravel(jax.grad(on_top)(jnp.eye(D), k)) for k in range(3)])
    compute.clear_cache()
    gradient, _, tallies = compute(batch, TeacherGradients(), parts)
    want = measured(jnp.asarray(tops @ tops.T), None)["teacher/gradient_cosine"]
    np.testing.assert_allclose(tallies["teacher/gradient_cosine"].sum, want.sum, atol=0.1)
    # Whatever the products are, the gradient is a sum of the teachers' with factors of at least 1.
    factors = np.linalg.lstsq(of_teachers(batch).T, np.asarray(gradient), rcond=None)[0]
    np.testing.assert_allclose(factors @ of_teachers(batch), gradient, rtol=1e-3, atol=1e-4)
    assert (factors > 1 - 1e-3).all()
    assert factors.max() > 1.01


def test_a_router_follows_the_alignment():
    made = objective(memory={"aligned": gradient_alignment(every=1, decay=0.0)})
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1), AXES, Budget(100, "tokens"))
    state = TrainState(jnp.zeros((), jnp.int32), PARAMS, optimizer.init(PARAMS), initial_memory([made]))
    setting = TeacherGradients(project=False, towards="a")
    state, tallies = jax.jit(step.make_train_step(STUDENT, made, optimizer, teacher_gradients=setting))(
        state, opposed_batch()
    )
    cosine, weights = tallies["teacher/gradient_cosine"].sum, tallies["router/aligned"].sum
    assert np.argmax(weights) == 0
    assert np.argsort(weights).tolist() == np.argsort(cosine).tolist()
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
    with pytest.raises(UserError, match="teacher_gradients"):
        jax.eval_shape(step.make_train_step(STUDENT, made, optimizer), state, opposed_batch())


def test_unknown_mode():
    with pytest.raises(UserError, match=r"exakt.*exact"):
        TeacherGradients(mode="exakt")  # type: ignore[arg-type]
