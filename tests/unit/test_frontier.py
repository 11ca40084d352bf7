"""The frontier check by hand: who is dropped, when, and what weights are left."""

import jax.numpy as jnp
import numpy as np
import pytest

from mixdistill.errors import UserError
from mixdistill.objective import Tally
from mixdistill.routers import frontier


def follow(router, losses, tokens=100.0):
    """The value after train steps with these content NLL a teacher; None is a teacher without data."""
    value = router.init(len(losses[0]))
    for step, row in enumerate(losses):
        has = jnp.array([x is not None for x in row], jnp.float32)
        nll = jnp.array([x or 0.0 for x in row], jnp.float32)
        tallies = {"teacher/content_nll": Tally(nll * 7, has * 7), "tokens": Tally(jnp.float32(tokens), jnp.ones(()))}
        value = router.update(value, tallies, step)
    return value


def falling(*ends, start=5, steps=20):
    """Losses that are 2 nats up to `start` and then those of `ends`."""
    return [[2.0] * len(ends)] * start + [list(ends)] * (steps - start)


OPTIONS = {"start": 5, "decay": 0.0}


def test_a_teacher_without_headway_is_dropped_and_the_others_keep_their_proportion():
    router = frontier(shares=(0.2, 0.4, 0.4), check_at=1000, **OPTIONS)
    before = follow(router, falling(0.2, 0.4, 1.8, steps=9))
    assert not before["ready"]
    np.testing.assert_allclose(before["weights"], [0.2, 0.4, 0.4])
    after = follow(router, falling(0.2, 0.4, 1.8, steps=10))
    assert bool(after["ready"])
    np.testing.assert_allclose(after["ratio"], [0.1, 0.2, 0.9], rtol=1e-6)
    np.testing.assert_allclose(after["weights"], [1 / 3, 2 / 3, 0], rtol=1e-6)


def test_it_decides_once():
    router = frontier(shares=(0.5, 0.5), check_at=1000, **OPTIONS)
    value = follow(router, falling(0.2, 0.4, steps=10) + [[0.2, 2.0]] * 30)
    np.testing.assert_allclose(value["weights"], [0.5, 0.5])
    np.testing.assert_allclose(value["ratio"], [0.1, 0.2], rtol=1e-6)


def test_nobody_is_dropped_while_nothing_is_learned():
    value = follow(frontier(shares=(0.5, 0.5), check_at=1000, **OPTIONS), falling(1.3, 2.4))
    np.testing.assert_allclose(value["weights"], [0.5, 0.5])


def test_a_teacher_outside_the_mixture_or_without_data_is_not_judged():
    value = follow(
        frontier(shares=(0.5, 0.5, 0.0), check_at=1000, **OPTIONS), [[2.0, None, None]] * 5 + [[0.2, 2, 2]] * 9
    )
    np.testing.assert_allclose(value["weights"], [0.5, 0.5, 0.0])


def test_it_counts_train_steps_where_the_budget_does():
    router = frontier(shares=(0.5, 0.5), check_at=8, unit="train_steps", **OPTIONS)
    assert not follow(router, falling(0.2, 1.8, steps=7))["ready"]
    assert bool(follow(router, falling(0.2, 1.8, steps=8))["ready"])


def test_a_check_before_the_start_drops_nobody():
    value = follow(frontier(shares=(0.5, 0.5), check_at=300, start=40), falling(0.2, 1.8))
    assert bool(value["ready"])
    np.testing.assert_allclose(value["weights"], [0.5, 0.5])


def test_shares_that_do_not_fit():
    with pytest.raises(UserError, match="positive"):
        frontier(shares=(0.0, 0.0), check_at=10)
    with pytest.raises(UserError, match="2 shares for 3 teachers"):
        frontier(shares=(0.5, 0.5), check_at=10).init(3)
