"""Reductions over runs of packed rows, by hand and against a loop over numpy slices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdistill.signals import steps

# Two rows. Row 0: trace 1 (prompt, step 1, step 1, step 2), trace 2 (step 1, step 1), padding. Row 1: one trace.
SEGMENT = jnp.array([[1, 1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1, 1]])
STEP = jnp.array([[0, 1, 1, 2, 1, 1, 0], [1, 1, 2, 2, 2, 3, 3]])
X = jnp.array([[9.0, 1, 2, 4, 8, 16, 7], [1, 3, 2, 4, 6, 5, -5]])
VALID = STEP > 0


def test_runs_number_traces_and_steps_within_a_row():
    assert steps.trace_run(SEGMENT).tolist() == [[0, 0, 0, 0, 1, 1, 2], [0] * 7]
    assert steps.step_run(SEGMENT, STEP).tolist() == [[0, 1, 1, 2, 3, 3, 4], [0, 0, 1, 1, 1, 2, 2]]


def test_sum_max_min_reach_every_token_of_their_run():
    run = steps.step_run(SEGMENT, STEP)
    assert steps.run_sum(X, run).tolist() == [[9, 3, 3, 4, 24, 24, 7], [4, 4, 12, 12, 12, 0, 0]]
    assert steps.run_max(X, run).tolist() == [[9, 2, 2, 4, 16, 16, 7], [3, 3, 6, 6, 6, 5, 5]]
    assert steps.run_min(X, run).tolist() == [[9, 1, 1, 4, 8, 8, 7], [1, 1, 2, 2, 2, -5, -5]]


def test_mean_counts_only_what_is_selected():
    run = steps.trace_run(SEGMENT)
    mean = steps.run_mean(X, VALID, run, empty=-1.0)
    np.testing.assert_allclose(mean[0], [7 / 3] * 4 + [12, 12, -1], rtol=1e-6)
    np.testing.assert_allclose(mean[1], [16 / 7] * 7, rtol=1e-6)


def test_a_nan_stays_in_its_run_and_outside_the_selection_it_is_nothing():
    x = X.at[0, 0].set(jnp.nan).at[0, 4].set(jnp.nan)
    mean = steps.run_mean(x, VALID, steps.trace_run(SEGMENT))
    assert np.isnan(mean).tolist() == [[False] * 4 + [True, True, False], [False] * 7]
    gradient = jax.grad(lambda x: steps.run_mean(x, VALID, steps.trace_run(SEGMENT))[0, 1])(x)
    assert np.isfinite(gradient).all()


def test_first_selected_token_stands_for_its_run():
    assert steps.run_start(steps.trace_run(SEGMENT), VALID).astype(int).tolist() == [
        [0, 1, 0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("window", [1, 2, 3, 5, 9])
def test_window_mean_against_slices(window):
    run = steps.trace_run(SEGMENT)
    got = steps.window_mean(X, VALID, run, window)
    for b in range(2):
        for t in range(7):
            span = slice(t - window + 1, t + 1)
            whole = t >= window - 1 and bool(VALID[b, span].all()) and len(set(run[b, span].tolist())) == 1
            expected = float(X[b, span].mean()) if whole else np.inf
            np.testing.assert_allclose(got[b, t], expected, rtol=1e-6)


def test_window_sum_keeps_its_digits_in_long_rows():
    x = jnp.concatenate([jnp.full((1, 5000), 1e4), jnp.full((1, 4), 0.1)], axis=1)
    ones = jnp.ones_like(x, dtype=bool)
    got = steps.window_mean(x, ones, jnp.zeros_like(x, dtype=jnp.int32), 4)
    np.testing.assert_allclose(got[0, -1], 0.1, rtol=1e-6)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.1, 1.0), (0.2, 2.0), (0.5, 3.0), (1.0, 5.0)])
def test_quantile_leaves_that_share_strictly_below(share, expected):
    x = jnp.array([[5.0, 4, 3, -9], [2, 1, -9, -9]])
    assert steps.quantile(x, x > 0, share) == expected


def test_quantile_of_nothing_closes_nothing():
    assert steps.quantile(jnp.ones((2, 2)), jnp.zeros((2, 2), bool), 0.5) == -jnp.inf
