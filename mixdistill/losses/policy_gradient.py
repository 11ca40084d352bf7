"""Policy gradients on the student's own completions: GRPO and its relatives as one loss, and the KL to a reference.

A completion is a trace by teacher "self" whose `teacher_logprob` is the log-probability under the policy that drew it,
and `advantage` is a batch field, one value a completion, repeated over its tokens. The published variants differ in
choices that are made apart from each other; `mixdistill.generation.objectives` makes them:

| variant | advantage | loss | mean over |
|---|---|---|---|
| GRPO (arXiv:2402.03300) | population or sample std | clip 0.2 / 0.2, KL to a reference by `k3_kl` | completions |
| DAPO (arXiv:2503.14476) | the same, groups without spread left out | clip 0.2 / 0.28 | tokens |
| Dr. GRPO (arXiv:2503.20783) | without std | clip 0.2 / 0.2 | places for tokens |
| 80/20 (arXiv:2506.01939) | as DAPO | as DAPO, on the most uncertain fifth of the tokens | these tokens |
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mixdistill.errors import unknown

NORMALISE = ("population", "sample", "none")


def group_advantages(
    rewards: np.ndarray, *, normalise: Literal["population", "sample", "none"] = "population", eps: float = 1e-4
) -> np.ndarray:
    """(reward - mean of its group) / (standard deviation of its group + eps), float32 [groups, samples].

    `rewards` is [groups, samples], the samples of one prompt in a row. "population" divides by the root of the mean
    square, "sample" by that of n - 1, "none" does not divide (Dr. GRPO, arXiv:2503.20783). NaN rewards are left out of
    mean and deviation and get advantage 0, as every sample of a group without spread does.
    """
    if normalise not in NORMALISE:
        raise unknown("normalise", normalise, NORMALISE)
    rewards = np.asarray(rewards, np.float64)
    known = np.isfinite(rewards)
    count = known.sum(-1, keepdims=True)
    values = np.where(known, rewards, 0.0)
    centred = np.where(known, values - values.sum(-1, keepdims=True) / np.maximum(count, 1), 0.0)
    if normalise != "none":
        spread = (centred**2).sum(-1, keepdims=True) / np.maximum(count - (normalise == "sample"), 1)
        centred = centred / (np.sqrt(spread) + eps)
    return centred.astype(np.float32)


def policy_gradient(
    label_logprob: Float[Array, "B T"],
    teacher_logprob: Float[Array, "B T"],
    advantage: Float[Array, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Array, "B T"]:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = p(token) / p(token when it was drawn) (arXiv:1707.06347).

    Its value is no measure of progress, only its gradient is. Where r has left the clip on the side that A favours, the
    gradient is exactly zero, so the vocabulary pass skips the token.
    """
    ratio = jnp.exp(label_logprob - teacher_logprob)
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def clipped(
    label_logprob: Float[Array, "B T"],
    teacher_logprob: Float[Array, "B T"],
    advantage: Float[Array, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Array, "B T"]:
    """1 where `policy_gradient` has no gradient because the ratio left its clip, else 0: to be watched."""
    ratio = jnp.exp(label_logprob - teacher_logprob)
    above, below = (advantage > 0) & (ratio > 1.0 + clip_high), (advantage < 0) & (ratio < 1.0 - clip_low)
    return (above | below).astype(jnp.float32)


def truncated(
    label_logprob: Float[Array, "B T"], teacher_logprob: Float[Array, "B T"], *, limit: float = 2.0
) -> Float[Array, "B T"]:
    """1 where `truncated_policy_gradient` cuts the importance weight, else 0: to be watched."""
    return (jnp.exp(label_logprob - teacher_logprob) > limit).astype(jnp.float32)


def truncated_policy_gradient(
    label_logprob: Float[Array, "B T"],
    teacher_logprob: Float[Array, "B T"],
    advantage: Float[Array, "B T"],
    *,
    limit: float = 2.0,
) -> Float[Array, "B T"]:
    """-min(r, limit) A log p(token), the factor held fixed; r = p(token) / p(token when it was drawn).

    For completions that older weights drew, or a server: an importance weight cut at `limit` (V-trace's, arXiv:
    1802.01561; per token as CISPO, arXiv:2506.13585). Unlike the clip it never silences a token.
    """
    weight = jnp.minimum(jnp.exp(label_logprob - teacher_logprob), limit)
    return -jax.lax.stop_gradient(weight) * advantage * label_logprob


def k3_kl(label_logprob: Float[Array, "B T"], reference_logprob: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """Schulman's k3 estimate of KL(student || reference) at the drawn token: exp(d) - d - 1 with d = log p_reference -
    log p_student, in nats. Never negative; zero, with zero gradient, at equality. `reference_logprob` is a sidecar
    field or a signal."""
    difference = reference_logprob - label_logprob
    return jnp.expm1(difference) - difference


def reverse_kl_gradient(
    label_logprob: Float[Array, "B T"],
    teacher_logprob: Float[Array, "B T"],
    reference_logprob: Float[Array, "B T"],
    *,
    coef: float = 1.0,
    limit: float = float("inf"),
) -> Float[Array, "B T"]:
    """On-policy distillation at the drawn token: a policy gradient with advantage -coef (log p_student - log p_teacher)
    held fixed and cut at +-limit, importance weighted. `reference_logprob` is the teacher model's, `teacher_logprob`
    that of the policy that drew the token (arXiv:2306.13649 on the student's own text; the sampled form of
    arXiv:2606.30406)."""
    advantage = jax.lax.stop_gradient(jnp.clip(coef * (reference_logprob - label_logprob), -limit, limit))
    return -jnp.exp(label_logprob - teacher_logprob) * advantage
