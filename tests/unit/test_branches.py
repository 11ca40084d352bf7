"""Rounds of branches against loops by hand; the averaged student; both from the middle and on meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdistill.errors import UserError
from mixdistill.losses.cross_entropy import cross_entropy
from mixdistill.mesh import FSDP, make_mesh
from mixdistill.objective import Objective, Term
from mixdistill.optimizers import Budget, OptimizerConfig, make_optimizer, progress
from mixdistill.recipe.parameters import Merge
from mixdistill.training import average, branches
from mixdistill.training.state import TrainState, init_state, state_shardings
from mixdistill.training.step import make_train_step
from tests.unit.bigram import AXES, bigram

V, D, TEACHERS = 16, 8, ("a", "b", "c")
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=0.1, warmup=0.0), AXES, Budget(20, "train_steps"))
OBJECTIVE = Objective({"imitate": Term(cross_entropy)}).with_teachers(TEACHERS)


STUDENT = bigram(V, D)
PLAIN = make_train_step(STUDENT, OBJECTIVE, OPTIMIZER)
STEP = jax.jit(PLAIN)


def batch_of(teacher: int, seed: int, shift: int | None = None):
    rng = np.random.default_rng(seed)
    shape = (4, 6)
    tokens = rng.integers(0, V, shape, dtype=np.int32)
    target = rng.integers(0, V, shape, dtype=np.int32) if shift is None else (tokens + np.int32(shift)) % V
    return {
        "tokens": tokens,
        "target": target,
        "valid": np.ones(shape, bool),
        "content": np.ones(shape, bool),
        "segment_id": np.ones(shape, np.int32),
        "position": np.arange(6, dtype=np.int32)[None].repeat(4, axis=0),
        "step_id": np.ones(shape, np.int32),
        "teacher_id": np.full(shape, teacher, np.int32),
        "trace_id": np.zeros(shape, np.int32),
    }


def start(**memory) -> TrainState:
    params = STUDENT.init(jax.random.key(0))
    return TrainState(
        jnp.zeros((), jnp.int32), params, OPTIMIZER.init(params), {k: v(params) for k, v in memory.items()}
    )


def in_branches(rule, turns, count):
    step = jax.jit(branches.in_branches(PLAIN, OPTIMIZER, rule, turns=turns, count=count))
    return start(**{branches.MEMORY: lambda params: branches.initial(rule, params)}), step


def fresh(params, done: float) -> TrainState:
    state = TrainState(jnp.zeros((), jnp.int32), params, OPTIMIZER.init(params), {})
    moved = jax.tree.map(lambda x: x, state.opt_state)
    return state._replace(opt_state=branches.spent(moved, jnp.float32(done)))


@pytest.mark.parametrize(
    ("weights", "scale"),
    [((0.5, 0.5), 1.0), ((0.8, 0.2), 1.0), ((0.5, 0.5), 1.2)],
    ids=["mean", "weighted", "task arithmetic"],
)
def test_two_rounds_equal_branches_by_hand(weights, scale):
    turns, count, rounds = 2, 2, 2
    state, step = in_branches(branches.merging(np.array(weights), scale), turns, count)
    params = start().params
    for number in range(rounds):
        ends, done = [], number * turns * count / 20
        for branch in range(count):
            alone = fresh(params, done)
            for i in range(turns):
                batch = batch_of(branch, number * 100 + branch * 10 + i)
                alone, _ = STEP(alone, batch)
                state, tallies = step(state, batch)
                assert float(tallies["branch"].sum) == branch
                if (branch, i) != (count - 1, turns - 1):
                    jax.tree.map(np.testing.assert_array_equal, state.params, alone.params)
            ends.append(alone.params)
        params = jax.tree.map(
            lambda a, *bs: a + scale * sum(w * (b - a) for w, b in zip(weights, bs, strict=True)), params, *ends
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.params, params)
        params = state.params  # rounding apart, the next round starts here
        # Every train step counts, though every branch saw the learning rate of the round's start.
        np.testing.assert_allclose(progress(state.opt_state), (number + 1) * turns * count / 20, rtol=1e-6)
    assert int(state.train_step) == rounds * turns * count


def test_a_pilot_admits_by_its_own_loss_and_the_best_goes_on():
    """Teacher b repeats what it reads, as the student learned to; c writes noise."""
    state = start()
    for i in range(40):
        state, _ = STEP(state, batch_of(0, i, shift=0))
    rule = branches.piloting((1, 2), 3, turns=8, limit=1.0)
    learned = state.params
    state = fresh(learned, 0.0)._replace(memory={branches.MEMORY: branches.initial(rule, learned)})
    step = jax.jit(branches.in_branches(PLAIN, OPTIMIZER, rule, turns=8, count=2))
    ends, lost = [], {1: [], 2: []}
    for branch, shift in ((1, 0), (2, None)):
        for i in range(8):
            state, tallies = step(state, batch_of(branch, 50 + 10 * branch + i, shift))
            lost[branch].append(float(tallies["teacher/content_nll"].mean()[branch]))
        ends.append(state.params)
    kept = state.memory[branches.MEMORY]["kept"]
    assert kept["admitted"].tolist() == [False, True, False]
    np.testing.assert_allclose(kept["nll"][1:], [np.mean(lost[1][-2:]), np.mean(lost[2][-2:])], rtol=1e-5)
    assert float(kept["nll"][0]) == -1  # no pilot
    jax.tree.map(np.testing.assert_array_equal, state.params, ends[0])


def test_without_an_admitted_pilot_the_run_goes_on_where_the_stage_began():
    rule = branches.piloting((1, 2), 3, turns=2, limit=0.01)
    state, step = in_branches(rule, 2, 2)
    before = state.params
    for i in range(4):
        state, _ = step(state, batch_of(1 + i // 2, i))
    jax.tree.map(np.testing.assert_array_equal, state.params, before)
    assert not state.memory[branches.MEMORY]["kept"]["admitted"].any()


def test_copies_of_parameters_lie_where_the_parameters_do():
    mesh = make_mesh({"fsdp": 4}, jax.devices()[:4])
    rule = branches.merging(np.array([0.5, 0.5]), 1.0)
    memory = {
        branches.MEMORY: lambda params: branches.initial(rule, params),
        average.MEMORY: average.initial,
    }
    state = init_state(STUDENT, OPTIMIZER, memory, 0, mesh, FSDP)
    where = state_shardings(jax.eval_shape(lambda: state), STUDENT, mesh, FSDP)
    for copy in (
        where.memory["average"],
        where.memory["branches"]["start"],
        where.memory["branches"]["kept"]["change"],
    ):
        assert copy == where.params
    assert len(state.memory["average"]["embed"].sharding.device_set) == 4


def test_the_average_by_hand():
    state = start(**{average.MEMORY: average.initial})
    step = jax.jit(average.averaging(PLAIN, 0.25))
    mean = state.params
    for n in range(3):
        state, _ = step(state, batch_of(0, n))
        d = min(0.25, (1 + n) / (10 + n))
        mean = jax.tree.map(lambda m, p, d=d: d * m + (1 - d) * p, mean, state.params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.memory[average.MEMORY], mean
        )
    jax.tree.map(np.testing.assert_array_equal, average.judged(state), state.memory[average.MEMORY])
    assert average.judged(start()) is not None
    spoilt = batch_of(0, 9)
    spoilt["valid"][:] = False
    after, tallies = step(state, spoilt)
    assert float(tallies["optimizer/skipped"].sum) == 1
    jax.tree.map(np.testing.assert_array_equal, after.memory, state.memory)


def test_merge_settings_are_checked():
    with pytest.raises(UserError, match="scale is 0"):
        Merge(scale=0)
