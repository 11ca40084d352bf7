"""How well a teacher's trace agrees with the student: surprisal in its forms, rank, and confident contradiction.

All of these are cheap (they come from the forward pass already made) and all of them mis-rank teachers whose forms
conflict: two teachers that share their surface look compatible, and are the conflict. They make safe filters around a
known anchor; they are no measure of who may join it.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mixdistill.signals.steps import run_max, run_mean, run_sum


def surprisal(label_logprob: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """-log p(target), in nats."""
    return -label_logprob


def worst_surprisal(
    surprisal: Float[Array, "B T"], content: Bool[Array, "B T"], trace_run: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """Surprisal of the trace's least likely content token, in nats; 0 for a trace without content tokens."""
    return run_max(jnp.where(content, surprisal, 0), trace_run)


def trace_surprisal(
    surprisal: Float[Array, "B T"], content: Bool[Array, "B T"], trace_run: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """Mean surprisal of the trace's content tokens, in nats; 0 for a trace without content tokens."""
    return run_mean(surprisal, content, trace_run)


def step_surprisal(
    surprisal: Float[Array, "B T"], content: Bool[Array, "B T"], step_run: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """Mean surprisal of the reasoning step's content tokens, in nats; 0 for a step without content tokens."""
    return run_mean(surprisal, content, step_run)


def trace_rank_surprisal(
    label_rank: Int[Array, "B T"],
    surprisal: Float[Array, "B T"],
    valid: Bool[Array, "B T"],
    trace_run: Int[Array, "B T"],
    *,
    max_rank: int = 100,
) -> Float[Array, "B T"]:
    """Rank-surprisal ratio of the trace: sum of min(rank, max_rank) over sum of surprisal, on completion tokens.

    Rank 1 is the most likely token; low is meant to be good; per nat (arXiv:2601.14249). A trace that the student
    predicts with certainty has no surprisal to divide by: its ratio is large, as the formula says, and finite.
    """
    ranks = run_sum(jnp.where(valid, jnp.minimum(label_rank, max_rank), 0), trace_run)
    return ranks / jnp.maximum(run_sum(jnp.where(valid, surprisal, 0), trace_run), _SMALLEST_SURPRISAL)


_SMALLEST_SURPRISAL = 1e-6  # nats a trace; below it the ratio is only noise of float32


def contradiction(
    label_logprob: Float[Array, "B T"],
    top1_logprob: Float[Array, "B T"],
    *,
    implausible: float = 0.1,
    sure: float = 0.7,
) -> Bool[Array, "B T"]:
    """The student confidently disagrees: p(target) < implausible while its own first choice has more than `sure`."""
    return (label_logprob < jnp.log(implausible)) & (top1_logprob > jnp.log(sure))
