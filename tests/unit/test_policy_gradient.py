"""Policy gradients: values and gradients by hand, and a bandit that every variant solves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixdistill.errors import UserError
from mixdistill.losses.policy_gradient import group_advantages, k3_kl, policy_gradient, reverse_kl_gradient


def test_advantages_by_hand():
    two_of_eight = np.array([[1, 1, 0, 0, 0, 0, 0, 0]])
    np.testing.assert_allclose(group_advantages(two_of_eight, eps=0)[0, [0, 7]], [1.7320508, -0.5773503], atol=1e-6)
    sample = group_advantages(two_of_eight, normalise="sample", eps=0)
    np.testing.assert_allclose(sample[0, [0, 7]], [1.6201852, -0.5400617], atol=1e-6)
    np.testing.assert_allclose(group_advantages(two_of_eight, normalise="none")[0, [0, 7]], [0.75, -0.25], atol=1e-6)
    np.testing.assert_array_equal(group_advantages(np.ones((2, 3))), 0)
    unverified = group_advantages(np.array([[1, np.nan, 0]]), normalise="none")
    np.testing.assert_allclose(unverified, [[0.5, 0, -0.5]])
    assert not group_advantages(np.full((1, 2), np.nan)).any()
    with pytest.raises(UserError, match="population"):
        group_advantages(two_of_eight, normalise="populatoin")


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.56, 0.0),  # left the clip upwards: 1.28 * 2, no gradient
        (1.5, -2.0, 3.0, 3.0),  # the same, but the advantage pulls back
        (0.5, 2.0, -1.0, -1.0),
        (0.5, -2.0, 1.6, 0.0),  # left it downwards
    ],
)
def test_clipping_by_hand(ratio, advantage, value, slope):
    drawn = jnp.full((1, 1), -1.3)

    def loss(logprob):
        return policy_gradient(logprob, drawn, jnp.full((1, 1), advantage), clip_low=0.2, clip_high=0.28).sum()

    got, gradient = jax.value_and_grad(loss)(drawn + jnp.log(ratio))
    np.testing.assert_allclose(got, value, rtol=1e-5)
    np.testing.assert_allclose(gradient[0, 0], slope, rtol=1e-5)


def test_k3_is_zero_at_equality_and_unbiased():
    here = jnp.full((1, 1), -0.7)
    assert k3_kl(here, here) == 0
    assert jax.grad(lambda x: k3_kl(x, here).sum())(here) == 0
    student, reference = jax.nn.log_softmax(jnp.array([0.3, -1.0, 0.9])), jax.nn.log_softmax(jnp.array([0.0, 0.5, 0.2]))
    expected = (jnp.exp(student) * (student - reference)).sum()
    np.testing.assert_allclose((jnp.exp(student) * k3_kl(student, reference)).sum(), expected, rtol=1e-5)


def test_reverse_kl_gradient_is_that_of_the_kl():
    """Averaged over what the student draws, the surrogate's gradient is the gradient of KL(student || teacher)."""
    raw, teacher = jnp.array([0.3, -1.0, 0.9]), jax.nn.log_softmax(jnp.array([0.0, 0.5, 0.2]))

    def kl(raw):
        student = jax.nn.log_softmax(raw)
        return (jnp.exp(student) * (student - teacher)).sum()

    def surrogate(raw):
        student = jax.nn.log_softmax(raw)
        drawn = jax.lax.stop_gradient(student)
        return (jnp.exp(drawn) * reverse_kl_gradient(student, drawn, teacher)).sum()

    np.testing.assert_allclose(jax.grad(surrogate)(raw), jax.grad(kl)(raw), atol=1e-6)
    cut = reverse_kl_gradient(jnp.zeros((1, 1)), jnp.zeros((1, 1)), jnp.full((1, 1), -9.0), limit=2.0)
    assert cut == 2.0


VARIANTS = {
    "grpo": ("population", 0.2, 0.2),
    "sample-std": ("sample", 0.2, 0.2),
    "dapo": ("population", 0.2, 0.28),
    "dr-grpo": ("none", 0.2, 0.2),
}


@pytest.mark.parametrize(("normalise", "low", "high"), VARIANTS.values(), ids=VARIANTS)
def test_every_variant_finds_the_best_arm(normalise, low, high):
    chances = np.array([0.2, 0.5, 0.8, 0.3])
    rng = np.random.default_rng(0)
    optimizer = optax.adam(0.1)
    raw = jnp.zeros(4)
    state = optimizer.init(raw)

    def loss(raw, arms, drawn, advantage):
        now = jax.nn.log_softmax(raw)[arms]
        return policy_gradient(now, drawn, advantage, clip_low=low, clip_high=high).mean()

    gradient = jax.jit(jax.grad(loss))
    for _ in range(60):
        before = np.asarray(jax.nn.log_softmax(raw), np.float64)
        arms = rng.choice(4, size=(8, 8), p=np.exp(before) / np.exp(before).sum())
        rewards = rng.random(arms.shape) < chances[arms]
        advantage = group_advantages(rewards, normalise=normalise)
        for _ in range(2):  # the second update is off-policy
            updates, state = optimizer.update(gradient(raw, arms, before[arms], advantage), state)
            raw = optax.apply_updates(raw, updates)
    assert int(jnp.argmax(raw)) == 2
    assert float(jax.nn.softmax(raw)[2]) > 0.8
