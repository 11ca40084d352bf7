"""Objectives for rollouts: values and gradients against formulas written down plainly, and bandits that each solves."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixdistill.data.fields import FIELDS
from mixdistill.generation import objectives
from mixdistill.generation.drawn import ADVANTAGE, DISTIL, REFERENCE
from mixdistill.losses.policy_gradient import clipped, group_advantages, truncated, truncated_policy_gradient
from mixdistill.objective import evaluate, mean_gradient, sums_and_gradients

ROWS, LENGTH, EMBED, VOCAB = 4, 6, 5, 9
TABLE = SimpleNamespace(
    hidden=lambda params, batch: params["hidden"],
    unembed=lambda params: params["unembed"],
    vocab_size=VOCAB,
    soft_cap=None,
    unembed_layout="dv",
)


@pytest.fixture(scope="module")
def setting():
    """Completions of 4, 2, 3 and 5 tokens that other weights have drawn, some far away."""
    rng = np.random.default_rng(0)
    params = {"hidden": rng.normal(size=(ROWS, LENGTH, EMBED)), "unembed": rng.normal(size=(EMBED, VOCAB))}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    batch = {name: np.full((ROWS, LENGTH), f.padding, f.dtype) for name, f in FIELDS.items()}
    lengths = [4, 2, 3, 5]
    batch["target"] = rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)
    batch["segment_id"][:] = 1
    batch["valid"] = np.arange(LENGTH) >= LENGTH - np.array(lengths)[:, None]
    now = np.asarray(plain(params, batch))
    batch["teacher_logprob"] = np.where(batch["valid"], now + rng.normal(0, 0.3, now.shape), np.nan).astype(np.float32)
    batch[REFERENCE] = (now + rng.normal(0, 0.5, now.shape)).astype(np.float32)
    batch[ADVANTAGE] = np.repeat(np.float32([1.5, -0.5, -1.0, 0.25]), LENGTH).reshape(ROWS, LENGTH)
    batch[DISTIL] = np.repeat(np.float32([1, 0, 0, 1]), LENGTH).reshape(ROWS, LENGTH)
    return params, batch


def plain(params, batch):
    """log p(target) [B, T]."""
    log_p = jax.nn.log_softmax(params["hidden"] @ params["unembed"])
    return jnp.take_along_axis(log_p, batch["target"][..., None], -1)[..., 0]


def surrogate(params, batch, low, high):
    ratio = jnp.exp(plain(params, batch) - np.nan_to_num(batch["teacher_logprob"]))
    a = batch[ADVANTAGE]
    return -jnp.minimum(ratio * a, jnp.clip(ratio, 1 - low, 1 + high) * a)


def mean(x, where):
    return jnp.where(where, x, 0).sum() / where.sum()


def of_grpo(params, batch):
    policy, where = surrogate(params, batch, 0.2, 0.2), batch["valid"]
    d = batch[REFERENCE] - plain(params, batch)
    each = policy + 0.1 * (jnp.exp(d) - d - 1)
    return jnp.stack([mean(each[row], where[row]) for row in range(ROWS)]).mean()


def of_dapo(params, batch):
    return mean(surrogate(params, batch, 0.2, 0.28), batch["valid"])


def of_uncertain_tokens(params, batch):
    log_p = jax.nn.log_softmax(params["hidden"] @ params["unembed"])
    entropy = jnp.where(batch["valid"], -(jnp.exp(log_p) * log_p).sum(-1), -jnp.inf)
    limit = jnp.sort(entropy.reshape(-1))[-5]  # of 14 tokens 35 percent, rounded
    return mean(surrogate(params, batch, 0.2, 0.28), entropy >= limit)


def of_off_policy(params, batch):
    now = plain(params, batch)
    weight = jnp.minimum(jnp.exp(now - np.nan_to_num(batch["teacher_logprob"])), 1.2)
    return mean(-jax.lax.stop_gradient(weight) * batch[ADVANTAGE] * now, batch["valid"])


def of_distil_or_reinforce(params, batch):
    now = plain(params, batch)
    advantage = jax.lax.stop_gradient(batch[REFERENCE] - now)
    distil = -jnp.exp(now - np.nan_to_num(batch["teacher_logprob"])) * advantage
    follow = batch[DISTIL] == 1
    reward = mean(surrogate(params, batch, 0.2, 0.28), batch["valid"] & ~follow)
    return mean(distil, batch["valid"] & follow) + reward


CASES = {
    "grpo": (objectives.grpo(kl=0.1), of_grpo),
    "dapo": (objectives.dapo(), of_dapo),
    "uncertain_tokens": (objectives.uncertain_tokens(keep=0.35), of_uncertain_tokens),
    "off_policy": (objectives.off_policy(limit=1.2), of_off_policy),
    "distil_or_reinforce": (objectives.distil_or_reinforce(), of_distil_or_reinforce),
}


@pytest.mark.parametrize(("objective", "slow"), CASES.values(), ids=CASES)
def test_loss_and_gradient_are_those_of_the_formula(setting, objective, slow):
    params, batch = setting
    objective = objective.with_teachers(("F", "self"))
    on_device = jax.tree.map(jnp.asarray, batch)
    total, gradients = sums_and_gradients(objective, TABLE, params, on_device, train_step=0)
    loss, _ = evaluate(objective, TABLE, params, on_device, train_step=0)
    expected, gradient = jax.value_and_grad(slow)(params, batch)
    np.testing.assert_allclose(loss.sum / loss.weight, expected, rtol=2e-5)
    for got, want in zip(
        jax.tree.leaves(mean_gradient(objective, total, gradients)), jax.tree.leaves(gradient), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=2e-6)


def test_what_is_watched(setting):
    params, batch = setting
    objective = objectives.grpo(kl=0.1).with_teachers(("F", "self"))
    _, tallies = evaluate(objective, TABLE, params, jax.tree.map(jnp.asarray, batch), train_step=0)
    ratio = np.exp(np.asarray(plain(params, batch)) - batch["teacher_logprob"])
    silenced = ((batch[ADVANTAGE] > 0) & (ratio > 1.2)) | ((batch[ADVANTAGE] < 0) & (ratio < 0.8))
    watched = tallies["teacher/clipped(clip_low=0.2, clip_high=0.2)"]
    assert watched.sum.sum() == (silenced & batch["valid"]).sum() > 0
    assert {"teacher/entropy", "teacher/k3_kl"} <= set(tallies)


@pytest.mark.parametrize(
    ("ratio", "advantage", "share"), [(1.3, 1, 1), (1.3, -1, 0), (0.7, -1, 1), (0.7, 1, 0), (1, 1, 0)]
)
def test_clip_share_by_hand(ratio, advantage, share):
    now, drawn = jnp.full((1, 1), jnp.log(ratio)), jnp.zeros((1, 1))
    assert clipped(now, drawn, jnp.full((1, 1), advantage), clip_low=0.2, clip_high=0.2) == share


@pytest.mark.parametrize(("ratio", "slope"), [(0.5, -1.0), (1.0, -2.0), (1.9, -3.8), (50.0, -4.0)])
def test_truncated_importance_by_hand(ratio, slope):
    drawn = jnp.full((1, 1), -4.0)
    now = drawn + jnp.log(ratio)
    gradient = jax.grad(lambda x: truncated_policy_gradient(x, drawn, jnp.full((1, 1), 2.0), limit=2.0).sum())(now)
    np.testing.assert_allclose(gradient[0, 0], slope, rtol=1e-5)  # min(r, 2) times the advantage, 2
    assert truncated(now, drawn, limit=2.0) == (ratio > 2)


BANDITS = {
    "grpo": (objectives.grpo(), "population"),
    "dapo": (objectives.dapo(), "sample"),
    "dr_grpo": (objectives.dr_grpo(), "none"),
    "uncertain_tokens": (objectives.uncertain_tokens(keep=1.0), "population"),
    "off_policy": (objectives.off_policy(), "none"),
}


@pytest.mark.parametrize(("objective", "normalise"), BANDITS.values(), ids=BANDITS)
def test_every_objective_finds_the_best_arm(objective, normalise):
    """Two updates on each batch; an arm is a completion of one token."""
    chances, rng = np.array([0.2, 0.5, 0.8, 0.3]), np.random.default_rng(0)
    objective = objective.with_teachers(("F", "self"))
    bandit = SimpleNamespace(
        hidden=lambda params, batch: jnp.broadcast_to(params["raw"], (*batch["target"].shape, 4)),
        unembed=lambda params: jnp.eye(4),
        vocab_size=4,
        soft_cap=None,
        unembed_layout="dv",
    )
    optimizer, params = optax.adam(0.1), {"raw": jnp.zeros(4)}
    state = optimizer.init(params)

    @jax.jit
    def update(params, state, batch):
        total, gradients = sums_and_gradients(objective, bandit, params, batch, train_step=0)
        updates, state = optimizer.update(mean_gradient(objective, total, gradients), state)
        return optax.apply_updates(params, updates), state

    for _ in range(50):
        before = np.asarray(jax.nn.log_softmax(params["raw"]), np.float64)
        arms = rng.choice(4, size=(8, 8), p=np.exp(before) / np.exp(before).sum())
        advantage = group_advantages(rng.random(arms.shape) < chances[arms], normalise=normalise)
        batch = {name: np.full((64, 1), f.padding, f.dtype) for name, f in FIELDS.items()}
        batch |= {"valid": np.ones((64, 1), bool), "target": arms.reshape(64, 1).astype(np.int32)}
        batch |= {"teacher_logprob": before[batch["target"]].astype(np.float32), ADVANTAGE: advantage.reshape(64, 1)}
        batch |= {name: np.zeros((64, 1), np.float32) for name in (REFERENCE, DISTIL)}
        for _ in range(2):
            params, state = update(params, state, batch)
    assert int(jnp.argmax(params["raw"])) == 2
    assert float(jax.nn.softmax(params["raw"])[2]) > 0.75
