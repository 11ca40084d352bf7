"""Adapters: nothing changes at first, only they learn, and what is merged or combined computes the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixdistill.errors import UserError
from mixdistill.losses import cross_entropy
from mixdistill.mesh import FSDP, make_mesh
from mixdistill.objective import Objective, Term
from mixdistill.optimizers import Budget, OptimizerConfig, make_optimizer, parameter_paths
from mixdistill.students import families
from mixdistill.students.adapters import ADAPTERS, BASE, FROZEN, Lora, adapted, combined, merged, widened, with_adapters
from mixdistill.students.decoder import make_student
from mixdistill.students.student import Student, batch_of
from mixdistill.training.state import init_state
from mixdistill.training.step import make_train_step

CONFIG = dataclasses.replace(families.tiny(32), embed=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp=24)
PLAIN = make_student(CONFIG)
LORA = Lora(rank=3, alpha=6.0, base_dtype="float32")
STUDENT = with_adapters(PLAIN, LORA)
TOKENS = batch_of(jnp.arange(12, dtype=jnp.int32).reshape(2, 6))
MATRICES = {"attention/query", "attention/key", "attention/value", "attention/out", "mlp/gate", "mlp/up", "mlp/down"}


def learned(seed: int):
    """Parameters whose adapters have learned something."""
    params = STUDENT.init(jax.random.key(0))
    noise = jax.random.key(seed)
    return {
        BASE: params[BASE],
        ADAPTERS: jax.tree.map(lambda a: a + 0.1 * jax.random.normal(noise, a.shape), params[ADAPTERS]),
    }


def test_a_fresh_adapter_computes_what_its_base_computes():
    params = STUDENT.init(jax.random.key(0))
    plain = PLAIN.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params[BASE], plain)
    np.testing.assert_allclose(STUDENT.hidden(params, TOKENS), PLAIN.hidden(plain, TOKENS), atol=1e-6)
    paths = {path.removeprefix("adapters/blocks/") for path, _ in parameter_paths(params) if path.startswith(ADAPTERS)}
    assert paths == {f"{name}/{part}" for name in MATRICES for part in "ab"}
    assert jax.tree.structure(params) == jax.tree.structure(
        jax.tree.map(len, STUDENT.axes, is_leaf=lambda x: type(x) is tuple)
    )
    jax.tree.map(lambda leaf, axes: np.testing.assert_equal(leaf.ndim, len(axes)), params, STUDENT.axes)


def test_merging_is_the_product_by_hand_and_computes_the_same():
    params = learned(1)
    whole = merged(PLAIN, LORA, params)
    np.testing.assert_allclose(STUDENT.hidden(params, TOKENS), PLAIN.hidden(whole, TOKENS), atol=1e-6)
    base, adapter = params[BASE]["blocks"]["attention"]["out"], params[ADAPTERS]["blocks"]["attention"]["out"]
    by_hand = [w + 2.0 * (a.reshape(16, 3) @ b).reshape(2, 8, 16)
               for w, a, b in zip(base, adapter["a"], adapter["b"], strict=True)]  # fmt: skip
    np.testing.assert_allclose(whole["blocks"]["attention"]["out"], np.stack(by_hand), atol=1e-6)
    np.testing.assert_array_equal(whole["embed"], params[BASE]["embed"])


def test_the_cache_merges_too():
    params = learned(1)
    cache = STUDENT.cache.init_cache(2, 6)
    hidden, _ = STUDENT.cache.extend(params, cache, TOKENS["tokens"], TOKENS["position"])
    np.testing.assert_allclose(hidden, STUDENT.hidden(params, TOKENS), atol=1e-5)


def test_only_adapters_learn_and_only_they_have_moments():
    lora = dataclasses.replace(LORA, base_dtype="bfloat16")
    student = with_adapters(PLAIN, lora)
    config = OptimizerConfig(learning_rate=0.1, warmup=0.0, frozen=(FROZEN,))
    optimizer = make_optimizer(config, student.axes, Budget(2, "train_steps"))
    objective = Objective({"imitate": Term(cross_entropy)}).with_teachers(("t",))
    state = init_state(student, optimizer, {}, 0, make_mesh({}, jax.devices()[:1]), FSDP)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params[BASE])} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params[ADAPTERS])} == {"float32"}
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    assert moments < 2.1 * sum(leaf.size for leaf in jax.tree.leaves(state.params[ADAPTERS]))
    tokens = TOKENS["tokens"]
    batch = {**TOKENS, "target": tokens, "valid": tokens > 0, "step_id": jnp.ones_like(tokens)}
    batch |= {"teacher_id": jnp.zeros_like(tokens), "trace_id": tokens, "content": tokens > 0}
    step = jax.jit(make_train_step(student, objective, optimizer, frozen=(FROZEN,)))
    new, tallies = step(*[step(state, batch)[0], batch])
    jax.tree.map(np.testing.assert_array_equal, new.params[BASE], state.params[BASE])
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), new.params[ADAPTERS], state.params[ADAPTERS])
    assert all(jax.tree.leaves(moved))
    assert tallies["optimizer/skipped"].mean() == 0


def test_adapters_of_two_teachers_combine_exactly():
    one, other = learned(1), learned(2)
    both = {BASE: one[BASE], ADAPTERS: combined(PLAIN, LORA, [one[ADAPTERS], other[ADAPTERS]], [0.25, 0.75])}
    whole = merged(PLAIN, widened(LORA, 2), both)
    parts = [merged(PLAIN, LORA, params) for params in (one, other)]
    mixed = jax.tree.map(lambda a, b: 0.25 * a + 0.75 * b, *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, mixed)
    with pytest.raises(UserError, match="1 adapters and 2 weights"):
        combined(PLAIN, LORA, [one[ADAPTERS]], [1.0, 2.0])
    with pytest.raises(UserError, match="no blocks/attention/"):
        combined(PLAIN, LORA, [one[ADAPTERS], {}], [1.0, 2.0])


def test_any_pattern_of_any_student():
    assert set(adapted(PLAIN.axes, Lora(patterns=("embed", "*/query")))) == {
        ("embed",),
        ("blocks", "attention", "query"),
    }
    with pytest.raises(UserError, match=r"'blocks/atention/query'; did you mean 'blocks/attention/query'"):
        with_adapters(PLAIN, Lora(patterns=("blocks/atention/query",)))
    with pytest.raises(UserError, match="unknown parameter path to adapt 'norm'"):  # a vector
        with_adapters(PLAIN, Lora(patterns=("norm",)))
    axes = {"w": ("embed", "vocab")}
    foreign = Student(lambda key: {"w": jnp.ones((4, 5))}, lambda p, batch: p["w"][:, 0], lambda p: p["w"], axes, 5)
    adapting = with_adapters(foreign, Lora(rank=1, patterns=("w",)))
    params = adapting.init(jax.random.key(0))
    params[ADAPTERS]["w"]["b"] += 1.0
    np.testing.assert_allclose(
        adapting.unembed(params), 1.0 + 32.0 * np.broadcast_to(params[ADAPTERS]["w"]["a"], (4, 5)), rtol=1e-5
    )
    with pytest.raises(UserError, match="rank 0"):
        Lora(rank=0)
