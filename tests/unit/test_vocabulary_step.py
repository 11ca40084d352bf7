"""The vocabulary pass in a whole train step, with a decoder whose layers are rematerialised, microbatches, and gates on
its own statistics: the step is that of all logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mixdistill.gates import rank_surprisal, step_confidence, worst_token
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.optimizers import Budget, OptimizerConfig, make_optimizer
from mixdistill.signals.reference import dense_stats
from mixdistill.signals.signal import use
from mixdistill.signals.vocabulary import Tiles
from mixdistill.students.decoder import make_student
from mixdistill.students.families import tiny
from mixdistill.training.state import TrainState, initial_memory
from mixdistill.training.step import make_train_step

VOCAB, SHAPE = 67, (4, 24)
GATES = (use(worst_token, threshold=6.2), use(step_confidence, quantile=0.2), use(rank_surprisal, threshold=7.6))
OBJECTIVE = Objective({"imitate": Term(cross_entropy, gates=GATES)}).with_teachers(("a", "b"))


def batch() -> dict[str, np.ndarray]:
    """Two traces a row, of a prompt of two tokens and four steps."""
    rng = np.random.default_rng(0)
    place = np.broadcast_to(np.arange(SHAPE[1], dtype=np.int32), SHAPE)
    valid = place % 12 > 1
    return {
        "tokens": rng.integers(0, VOCAB, SHAPE, dtype=np.int32),
        "target": rng.integers(0, VOCAB, SHAPE, dtype=np.int32),
        "valid": valid,
        "segment_id": 1 + place // 12,
        "position": place % 12,
        "step_id": np.where(valid, 1 + place % 12 // 3, 0).astype(np.int32),
        "teacher_id": place // 12,
        "trace_id": place // 12,
        "content": valid,
    }


def one_step(remat: str, **options):
    """(state, tallies) after a train step of two microbatches."""
    sizes = {"embed": 16, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp": 32}
    student = make_student(dataclasses.replace(tiny(VOCAB), **sizes, remat=remat, soft_cap=5.0))
    optimizer = make_optimizer(OptimizerConfig(warmup=0.0), student.axes, Budget(2, "train_steps"))
    quick = {"xla_backend_optimization_level": 0}  # compiling is what costs here; the code is the same
    params = jax.jit(student.init, compiler_options=quick)(jax.random.key(0))
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), initial_memory([OBJECTIVE]))
    step = make_train_step(student, OBJECTIVE, optimizer, num_microbatches=2, options=options)
    return jax.device_get(jax.jit(step, compiler_options=quick)(state, batch()))


def test_a_train_step_is_that_of_all_logits(monkeypatch):
    state, tallies = one_step("full", backward="tiles", tiles=Tiles(16, 32, 8, 32))
    monkeypatch.setattr("mixdistill.objective.evaluation.vocabulary_pass", dense_stats)
    expected_state, expected_tallies = one_step("none")
    for name in (*(f"gate/imitate/{gate.name}" for gate in GATES), "kept"):
        assert 0 < tallies[name].sum < tallies[name].weight, name
    assert tallies["optimizer/skipped"].sum == 0
    for ours, theirs in ((state.opt_state, expected_state.opt_state), (tallies, expected_tallies)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), ours, theirs)
