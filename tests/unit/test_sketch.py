"""Gradient sketches against full gradients, and GRACE against its formula written out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixdistill.diagnostics import sketch
from mixdistill.students.student import Student, logits


def test_grace_by_hand():
    # Rows of length one along the axes: S_train = diag(1/2, 1/2); S_test = diag(4, 0): trace 8 whatever the smoothing.
    assert sketch.grace([[3.0, 0.0], [0.0, 5.0]], [[2.0, 0.0]]) == pytest.approx(8)
    # S_train = diag(1, 0), smoothed by .1: (.9 + .05, .05); S_test = diag(0, 1).
    assert sketch.grace([[1.0, 0.0]], [[0.0, 1.0]], smoothing=0.1) == pytest.approx(20)


rows = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=n, max_size=n)
)


@given(rows, rows, st.floats(0.01, 0.5))
def test_grace_agrees_with_the_inverse(train, test, smoothing):
    found = sketch.grace(train, test, smoothing)
    unit = [np.array(r) / np.linalg.norm(r) for r in train if any(r)]
    if not unit:
        assert math.isnan(found)
        return
    s_train = sum(np.outer(r, r) for r in unit) / len(train)
    s_train = (1 - smoothing) * s_train + smoothing * np.trace(s_train) / 3 * np.eye(3)
    s_test = sum(np.outer(r, r) for r in map(np.array, test)) / len(test)
    assert found == pytest.approx(np.trace(np.linalg.inv(s_train) @ s_test), rel=1e-6, abs=1e-9)


def test_grace_without_data():
    assert math.isnan(sketch.grace(np.zeros((0, 4)), np.ones((1, 4))))
    assert math.isnan(sketch.grace(np.ones((1, 4)), np.zeros((0, 4))))
    assert math.isnan(sketch.grace_of_traces(np.ones((3, 4)), np.zeros(3)))


def test_grace_of_traces_splits_by_problem():
    random = np.random.default_rng(0)
    found = sketch.grace_of_traces(random.normal(size=(60, 5)), np.repeat(np.arange(20), 3), splits=4)
    # Isotropic rows: S_train = I / 5 after normalisation, trace of S_test = 5, so about 25.
    assert 12 < found < 50


def test_cosines_and_conflict_rates_by_hand():
    rows = np.array([[1.0, 0], [1, 0], [-1, 1], [0, 0]])
    teacher = np.array([0, 0, 1, 2])
    cosines = sketch.teacher_cosines(rows, teacher, 4)
    assert cosines[0, 1] == pytest.approx(-math.sqrt(0.5))
    assert cosines[0, 0] == pytest.approx(1)
    assert np.isnan(cosines[2]).all()  # no gradient
    assert np.isnan(cosines[3]).all()  # no traces
    rates = sketch.conflict_rates(rows, teacher, 4)
    assert (rates[0, 0], rates[0, 1], rates[0, 2]) == (0, 1, 0)
    assert np.isnan(rates[1, 1])
    assert np.isnan(rates[3]).all()


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-2, 2), st.integers(-2, 2)), max_size=8))
def test_conflict_rates_agree_with_all_pairs(traces):
    teacher = np.array([t[0] for t in traces], int)
    rows = np.array([t[1:] for t in traces], float).reshape(-1, 2)
    found = sketch.conflict_rates(rows, teacher, 3)
    for a in range(3):
        for b in range(3):
            pairs = [
                (i, j)
                for i in range(len(rows))
                for j in range(len(rows))
                if i != j and teacher[i] == a and teacher[j] == b
            ]
            share = np.mean([rows[i] @ rows[j] < 0 for i, j in pairs]) if pairs else np.nan
            assert found[a, b] == pytest.approx(share, nan_ok=True)


def table_student(soft_cap: float | None) -> Student:
    """A token's state is its embedding: compiles in no time."""

    def init(key):
        table, unembed = jax.random.split(key)
        return {"table": jax.random.normal(table, (23, 16)), "unembed": jax.random.normal(unembed, (16, 23))}

    return Student(
        init, lambda params, batch: params["table"][batch["tokens"]], lambda params: params["unembed"], {}, 23, soft_cap
    )


@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_sketches_have_the_inner_products_of_the_gradients(soft_cap):
    student = table_student(soft_cap)
    params = student.init(jax.random.key(0))
    random = np.random.default_rng(0)
    tokens = random.integers(0, 23, (2, 12)).astype(np.int32)
    segment = np.repeat([[1] * 5 + [2] * 6 + [0]], 2, axis=0).astype(np.int32)
    batch = {
        "tokens": tokens,
        "target": np.roll(tokens, -1, axis=1),
        "segment_id": segment,
        "position": np.where(segment == 2, np.arange(12) - 5, np.arange(12)).astype(np.int32),
        "valid": (segment > 0) & (np.arange(12) != 0),
    }
    # Side 256 is wider than the matrix: the inner products are then nearly exact.
    found = sketch.head_gradients(student, params, batch, num_traces=3, key=jax.random.key(1), side=256)
    assert found.shape == (2, 3, 256 * 256)
    assert not np.any(found[:, 2])  # padding, and nothing after it
    hidden = student.hidden(params, batch)

    @jax.jit
    @jax.grad
    def gradient(weights, row, number):
        z = logits(student._replace(unembed=lambda _: weights), params, hidden[row])
        where = jnp.asarray(batch["valid"])[row] & (jnp.asarray(segment)[row] == number)
        nll = -jnp.take_along_axis(jax.nn.log_softmax(z), jnp.asarray(batch["target"])[row][:, None], axis=1)[:, 0]
        return (nll * where).sum() / where.sum()

    full = np.stack([np.ravel(gradient(student.unembed(params), r, n)) for r in (0, 1) for n in (1, 2)])
    sketched = np.asarray(found[:, :2]).reshape(4, -1)
    scale = np.abs(np.diag(full @ full.T)).max()
    np.testing.assert_allclose(sketched @ sketched.T, full @ full.T, atol=0.15 * scale)
