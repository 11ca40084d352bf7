"""The train step on a bigram student: gradient, accumulation, no-ops, freezing, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixdistill.gates.near_own_mean import near_own_mean
from mixdistill.gates.teacher_weight import teacher_weight
from mixdistill.gates.worst_token import worst_token
from mixdistill.losses.cross_entropy import cross_entropy
from mixdistill.memory import running
from mixdistill.objective import Objective, Term, combine
from mixdistill.optimizers import Budget, OptimizerConfig, make_optimizer
from mixdistill.signals.signal import use
from mixdistill.training.state import TrainState, initial_memory
from mixdistill.training.step import make_eval_step, make_train_step
from tests.unit.bigram import AXES, bigram

V, D, TEACHERS = 11, 6, ("a", "b", "c")


def random_batch(rows=8, length=12, seed=0):
    rng = np.random.default_rng(seed)
    shape = (rows, length)
    valid = rng.random(shape) < 0.7
    return {
        "tokens": rng.integers(0, V, shape, dtype=np.int32),
        "target": rng.integers(0, V, shape, dtype=np.int32),
        "valid": valid,
        "segment_id": np.repeat([[1, 2]], length // 2, axis=1).repeat(rows, axis=0).astype(np.int32),
        "position": np.tile(np.arange(length // 2, dtype=np.int32), (rows, 2)),
        "step_id": np.where(valid, 1, 0).astype(np.int32),
        "teacher_id": rng.integers(0, 3, (rows, 1), dtype=np.int32).repeat(length, axis=1),
        "trace_id": np.zeros(shape, np.int32),
        "content": valid,
    }


def objective(*gates, **more) -> Objective:
    return Objective({"imitate": Term(cross_entropy, gates=gates)}, **more).with_teachers(TEACHERS)


def two_groups() -> Objective:
    gate = use(worst_token, threshold=4.0)
    terms = {"imitate": Term(cross_entropy, gates=(gate,)), "all": Term(cross_entropy, coef=0.3)}
    return Objective(terms).with_teachers(TEACHERS)


def setup(objective, config=OptimizerConfig(learning_rate=0.1, warmup=0.0), **options):
    student = bigram(V, D)
    optimizer = make_optimizer(config, AXES, Budget(100, "tokens"))
    params = student.init(jax.random.key(1))
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), initial_memory([objective]))
    return state, jax.jit(make_train_step(student, objective, optimizer, frozen=config.frozen, **options))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_equals_a_hand_written_step():
    state, step = setup(objective())
    batch = random_batch()

    def mean_nll(params):
        logits = params["embed"][batch["tokens"]] @ params["unembed"]
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["target"])
        return (nll * batch["valid"]).sum() / batch["valid"].sum()

    loss, gradient = jax.value_and_grad(mean_nll)(state.params)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, warmup=0.0), AXES, Budget(100, "tokens"))
    updates, _ = optimizer.update(gradient, state.opt_state, state.params, tokens=jnp.float32(batch["valid"].sum()))
    new, tallies = step(state, batch)
    assert_close(new.params, optax.apply_updates(state.params, updates), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tallies["loss"].mean(), loss, rtol=1e-6)
    np.testing.assert_allclose(tallies["optimizer/grad_norm"].mean(), optax.global_norm(gradient), rtol=1e-6)
    np.testing.assert_allclose(tallies["optimizer/progress"].mean(), batch["valid"].sum() / 100, rtol=1e-6)
    assert int(new.train_step) == 1


@pytest.mark.parametrize("make", [objective, two_groups, lambda: objective(use(worst_token, threshold=4.0))])
def test_one_batch_equals_four_microbatches(make):
    batch, results = random_batch(), []
    for num_microbatches in (1, 4):
        state, step = setup(make(), num_microbatches=num_microbatches)
        results.append(step(state, batch))
    (one, tallies), (four, tallies4) = results
    # Adam's first update is the gradient's sign wherever |g| >> eps, so compare what it is made of as well.
    assert_close(one.opt_state, four.opt_state, rtol=1e-5, atol=1e-7)
    assert_close(one.params, four.params, rtol=1e-5, atol=1e-6)
    assert_close(tallies, tallies4, rtol=1e-5, atol=1e-6)


def test_the_microbatches_are_not_averages_of_averages():
    """Rows with very different numbers of valid tokens: a mean of means would weigh them equally."""
    batch = random_batch()
    batch["valid"][:4] = False
    batch["valid"][0, 0] = True
    (state, one), (_, four) = setup(objective()), setup(objective(), num_microbatches=4)
    np.testing.assert_allclose(one(state, batch)[1]["loss"].mean(), four(state, batch)[1]["loss"].mean(), rtol=1e-6)


@pytest.mark.parametrize("spoil", ["loss", "nothing kept"])
def test_an_unusable_train_step_changes_nothing_and_is_counted(spoil):
    state, step = setup(objective(memory={"seen": running("teacher/nll")}))
    state, _ = step(state, random_batch(seed=1))
    batch = random_batch(seed=2)
    if spoil == "loss":
        state = state._replace(params={**state.params, "embed": state.params["embed"].at[:, 0].set(jnp.nan)})
    else:
        batch["valid"][:] = False
    new, tallies = step(state, batch)
    assert_same(new._replace(train_step=state.train_step), state)
    assert int(new.train_step) == int(state.train_step) + 1
    assert float(tallies["optimizer/skipped"].sum) == 1.0


def test_a_usable_train_step_is_not_counted_as_skipped():
    state, step = setup(objective())
    assert float(step(state, random_batch())[1]["optimizer/skipped"].sum) == 0.0


def test_memory_is_updated_from_the_sums_of_all_microbatches():
    values = []
    for num_microbatches in (1, 4):
        state, step = setup(objective(memory={"seen": running("teacher/nll")}), num_microbatches=num_microbatches)
        values.append(step(state, random_batch())[0].memory["seen"])
    assert int(values[0]["num_updates"].max()) == 1
    assert_close(*values, rtol=1e-6)


def test_frozen_parameters_stay_and_get_no_gradient():
    config = OptimizerConfig(learning_rate=0.1, warmup=0.0, frozen=("unembed",))
    state, step = setup(objective(), config)
    new, tallies = step(state, random_batch())
    assert_same(new.params["unembed"], state.params["unembed"])
    assert np.all(np.asarray(new.params["embed"] != state.params["embed"]).any(1))
    free_state, free = setup(objective())
    assert float(tallies["optimizer/grad_norm"].sum) < float(
        free(free_state, random_batch())[1]["optimizer/grad_norm"].sum
    )


POISON = V - 1  # its embedding is NaN


@pytest.mark.parametrize("num_microbatches", [1, 4])
def test_under_a_closed_gate_neither_nan_nor_gradient_gets_through_the_train_step(num_microbatches):
    """Teacher c writes tokens that break the student; its gate is closed, so the step is that of the others alone."""
    gate = use(teacher_weight, weights={"c": 0.0})
    config = OptimizerConfig(learning_rate=0.1, warmup=0.0, weight_decay=0.0)
    batch = random_batch()
    for name in ("tokens", "target"):
        batch[name] = np.where(batch["teacher_id"] == 2, POISON, batch[name] % POISON).astype(np.int32)
    without = {**batch, "valid": batch["valid"] & (batch["teacher_id"] != 2), "tokens": batch["tokens"] % POISON}
    without["content"] = without["valid"]

    state, step = setup(objective(gate), config, num_microbatches=num_microbatches)
    spoilt = state.params["embed"].at[POISON].set(jnp.nan)
    new, tallies = step(state._replace(params={**state.params, "embed": spoilt}), batch)
    want, _ = step(state, without)
    assert float(tallies["optimizer/skipped"].sum) == 0.0
    assert np.isnan(new.params["embed"][POISON]).all()
    assert_close(new.params["embed"][:POISON], want.params["embed"][:POISON], rtol=1e-6)
    assert_close(new.params["unembed"], want.params["unembed"], rtol=1e-6)
    assert_close(tallies["loss"].mean(), step(state, without)[1]["loss"].mean(), rtol=1e-6)
    assert float(tallies["teacher/nonfinite"].sum[2]) == batch["valid"][batch["teacher_id"][:, 0] == 2].sum()


def test_the_eval_step_counts_what_a_train_step_counts_and_reads_memory():
    made = objective(use(near_own_mean, margin=0.5), memory={"baseline": running("teacher/content_nll")})
    state, step = setup(made)
    batch = random_batch()
    for seed in range(3):
        state, _ = step(state, random_batch(seed=seed))
    _, found = combine(made, jax.jit(make_eval_step(bigram(V, D), made))(state._replace(opt_state=None), batch))
    _, want = step(state, batch)
    assert_close(found, {name: want[name] for name in found}, rtol=1e-6)
    assert 0 < float(found["kept"].mean()) < 1
    assert {name for name in want if name not in found} == {name for name in want if name.startswith("optimizer/")}


def test_the_sums_of_two_halves_make_the_tallies_of_the_whole():
    """Also where a gate closes nearly everything, so that the loss has another denominator in each half."""
    made = objective(use(worst_token, threshold=4.0))
    state, _ = setup(made)
    step, batch = jax.jit(make_eval_step(bigram(V, D), made)), random_batch()
    halves = [step(state, {name: x[part] for name, x in batch.items()}) for part in (slice(0, 4), slice(4, 8))]
    assert_close(combine(made, jax.tree.map(jnp.add, *halves)), combine(made, step(state, batch)), rtol=1e-5)


def test_training_learns_a_deterministic_bigram():
    state, step = setup(objective(), OptimizerConfig(learning_rate=0.1, warmup=0.0, final=1.0))
    for seed in range(60):
        batch = random_batch(seed=seed)
        batch["target"] = (batch["tokens"] * 3 + 1) % V
        state, tallies = step(state, batch)
    assert float(tallies["loss"].mean()) < 0.05
