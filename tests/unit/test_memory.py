"""Running estimates and routers by hand: who has data, what is not finite, and which weights come out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdistill.errors import UserError
from mixdistill.losses import cross_entropy
from mixdistill.memory import init_memory, running, update_memory
from mixdistill.objective import Objective, Tally, Term
from mixdistill.routers import (
    acceptance,
    doremi,
    exponentiated_gradient,
    learning_progress,
    quality_learnability,
    scheduled,
)


def tally(*means, weight=None):
    means = jnp.array(means, jnp.float32)
    weight = jnp.ones_like(means) if weight is None else jnp.array(weight, jnp.float32)
    return Tally(jnp.where(weight > 0, means * weight, 0), weight)


def after(memory, *tallies, name="t"):
    value = memory.init(tallies[0].sum.shape[0])
    for step, given in enumerate(tallies):
        value = memory.update(value, {name: given}, step)
    return value


def test_running_mean_is_debiased():
    value = after(running("t", decay=0.5), tally(4.0), tally(1.0), tally(1.0))
    np.testing.assert_allclose(value["value"], (4 * 0.25 + 1 * 0.5 + 1) / 1.75, rtol=1e-6)
    np.testing.assert_allclose(after(running("t", decay=0.9), tally(4.0))["value"], 4, rtol=1e-6)


def test_running_mean_from_an_initial_value():
    value = after(running("t", decay=0.9, initial=1.0), tally(0.0), tally(0.0))
    np.testing.assert_allclose(value["value"], 0.81, rtol=1e-6)


def test_a_teacher_without_data_keeps_its_value():
    value = after(running("t", decay=0.5), tally(2.0, 3.0), tally(0.0, 5.0, weight=[0, 7]))
    np.testing.assert_allclose(value["value"], [2, (3 * 0.5 + 5) / 1.5], rtol=1e-6)
    assert value["num_updates"].tolist() == [1, 2]


@pytest.mark.parametrize("bad", [Tally(jnp.array([jnp.nan]), jnp.ones(1)), Tally(jnp.ones(1), jnp.array([jnp.nan]))])
def test_a_tally_that_is_not_finite_is_ignored_and_counted(bad):
    value = after(running("t"), tally(2.0), bad, tally(2.0))
    np.testing.assert_allclose(value["value"], 2, rtol=1e-6)
    assert (int(value["num_updates"][0]), int(value["num_bad"])) == (2, 1)


def test_acceptance_refills_by_what_is_kept():
    router = acceptance(tally="t")
    start = router.init(2)
    assert start["weights"].tolist() == [0.5, 0.5]
    assert not start["ready"]
    value = after(router, tally(1.0, 0.0))
    np.testing.assert_allclose(value["weights"], [0.95 / 1.9 + 0.025, 0.95 * 0.9 / 1.9 + 0.025], rtol=1e-6)
    assert bool(value["ready"])
    value = after(router, *[tally(1.0, 0.0)] * 200)
    np.testing.assert_allclose(value["weights"], [0.975, 0.025], atol=1e-6)


def test_acceptance_of_nothing_is_equal_weights():
    value = after(acceptance(tally="t", decay=0.0), tally(0.0, 0.0, 0.0))
    np.testing.assert_allclose(value["weights"], [1 / 3] * 3, rtol=1e-6)


def test_learning_progress_starts_late_and_prefers_the_fastest():
    router = learning_progress(tally="t", start=2, decay=0.0)
    before = after(router, tally(4.0, 2.0))
    assert before["weights"].tolist() == [0.5, 0.5]
    assert not before["ready"]
    begun = after(router, tally(4.0, 2.0), tally(4.0, 2.0))
    assert bool(begun["ready"])
    np.testing.assert_allclose(begun["weights"], [0.5, 0.5], rtol=1e-6)
    value = after(router, tally(4.0, 2.0), tally(4.0, 2.0), tally(3.0, 1.8))
    share = np.exp([-7.5, -9.0]) / np.exp([-7.5, -9.0]).sum()
    np.testing.assert_allclose(value["weights"], 0.9 * share + 0.05, rtol=1e-5)


def test_learning_progress_takes_a_late_teacher_in_where_it_starts():
    router, none = learning_progress(tally="t", start=1, decay=0.0), [1, 0]
    value = after(router, tally(4.0, 0.0, weight=none), tally(4.0, 9.0), tally(4.0, 9.0))
    assert value["start"].tolist() == [4, 9]
    np.testing.assert_allclose(value["weights"], [0.5, 0.5], rtol=1e-6)


def test_doremi_raises_the_teacher_that_is_furthest_behind():
    value = after(doremi(tally="t", rate=2.0, floor=0.1), tally(1.0, 0.5))
    share = np.exp([0, -1.0]) / np.exp([0, -1.0]).sum()
    np.testing.assert_allclose(value["weights"], 0.9 * share + 0.05, rtol=1e-6)
    again = doremi(tally="t", rate=2.0, floor=0.0).update(value, {"t": tally(0.0, 9.0, weight=[1, 0])}, 1)
    np.testing.assert_allclose(again["weights"], value["weights"], rtol=1e-6)  # a teacher without data is not behind
    assert np.isfinite(after(doremi(tally="t"), tally(1e5, 0.0))["weights"]).all()


def test_exponentiated_gradient_follows_the_fall_of_a_loss():
    router = exponentiated_gradient(tally="t", rate=2.0, decay=0.0, floor=0.1)
    value = after(router, tally(4.0, 2.0))
    assert value["weights"].tolist() == [0.5, 0.5]
    assert not value["ready"]
    value = after(router, tally(4.0, 2.0), tally(3.0, 1.5), tally(9.0, 1.5, weight=[0, 1]))
    share = np.exp([0, -1.0]) / np.exp([0, -1.0]).sum()  # fell by 1 and by 1/2, at rate 2
    np.testing.assert_allclose(value["weights"], 0.9 * share + 0.05, rtol=1e-6)
    assert bool(value["ready"])


def test_exponentiated_gradient_takes_the_value_itself_as_a_reward():
    value = after(
        exponentiated_gradient(tally="t", reward="value", decay=0.0, floor=0.0), tally(0.5, 1.0), tally(0.5, 1.0)
    )
    np.testing.assert_allclose(value["weights"], np.exp([1, 2]) / np.exp([1, 2]).sum(), rtol=1e-6)
    with pytest.raises(UserError, match="reward 'falls'; did you mean 'fall'"):
        exponentiated_gradient(tally="t", reward="falls")  # type: ignore[arg-type]


def test_quality_and_learnability_are_stretched_and_added():
    router = quality_learnability(share=0.6, temperature=0.5, floor=0.1)
    update = {"teacher/trace_correct": tally(0.5, 1.0, 0.75), "teacher/nll": tally(1.0, 3.0, 9.0, weight=[1, 1, 0])}
    value = router.update(router.init(3), update, 0)
    score = np.array([0.4, 0.6, 0.6 * 0.5 + 0.4 * 0.5]) / 0.5
    np.testing.assert_allclose(value["weights"], 0.9 * np.exp(score) / np.exp(score).sum() + 0.1 / 3, rtol=1e-6)
    assert bool(value["ready"])


def test_scheduled_shares_follow_the_train_step_and_the_temperature():
    router = scheduled(start=(1.0, 0.0), end=(1.0, 3.0), num_train_steps=10, begin=5)
    assert router.init(2)["weights"].tolist() == [1, 0]
    shares = [router.update({}, {}, step)["weights"].tolist() for step in (4, 9, 14, 99)]  # made for the next one
    np.testing.assert_allclose(shares, [[1, 0], [0.625, 0.375], [0.25, 0.75], [0.25, 0.75]], rtol=1e-6)
    even = scheduled(start=(4.0, 1.0, 0.0), end=(4.0, 1.0, 0.0), num_train_steps=1, temperature=2.0)
    np.testing.assert_allclose(even.init(3)["weights"], [2 / 3, 1 / 3, 0], rtol=1e-6)
    for wrong in ({"end": (1.0,)}, {"end": (0.0, 0.0)}, {"end": (1.0, -1.0)}, {"temperature": 0.0}):
        with pytest.raises(UserError, match="scheduled shares"):
            scheduled(**{"start": (1.0, 1.0), "end": (1.0, 1.0), "num_train_steps": 2} | wrong)
    with pytest.raises(UserError, match="2 shares for 3 teachers"):
        router.init(3)


@pytest.mark.parametrize(
    "router",
    [
        acceptance(tally="t"),
        learning_progress(tally="t", start=1),
        doremi(tally="t"),
        exponentiated_gradient(tally="t"),
        quality_learnability(quality="t", nll="t"),
    ],
)
def test_weights_are_a_distribution_whatever_comes_and_jit_changes_nothing(router):
    random = np.random.default_rng(0)
    value = router.init(4)
    for step in range(5):
        given = tally(*random.uniform(0, 1, 4), weight=random.integers(0, 2, 4))
        given = Tally(given.sum.at[step % 4].set(jnp.nan), given.weight)
        value, jitted = router.update(value, {"t": given}, step), jax.jit(router.update)(value, {"t": given}, step)
        np.testing.assert_allclose(value["weights"].sum(), 1, rtol=1e-6)
        assert (np.asarray(value["weights"]) > 0).all()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), value, jitted)
        assert jax.tree.structure(value) == jax.tree.structure(router.init(4))


def test_objective_memory_is_made_and_updated_by_name():
    objective = Objective({"a": Term(cross_entropy)}, memory={"m": running("teacher/nll")}).with_teachers(("x", "y"))
    memory = {**init_memory(objective), "of another stage": jnp.ones(1)}
    new = update_memory(objective, memory, {"teacher/nll": tally(1.0, 2.0)}, 0)
    np.testing.assert_allclose(new["m"]["value"], [1, 2], rtol=1e-6)
    assert new["of another stage"] is memory["of another stage"]


def test_errors():
    with pytest.raises(UserError, match="with_teachers"):
        init_memory(Objective({"a": Term(cross_entropy)}, memory={"m": running("teacher/nll")}))
    with pytest.raises(UserError, match="decay is 1"):
        running("t", decay=1)
    with pytest.raises(UserError, match="'t'; known per-teacher tallies: teacher/nll"):
        running("t").update(running("t").init(1), {"teacher/nll": tally(1.0)}, 0)
