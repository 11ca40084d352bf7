"""How sure the student is, by token, by reasoning step and by trace (DeepConf's quantities, arXiv:2508.15260).

Token confidence is C = -mean log-probability of the k most likely tokens, in nats: higher is more peaked, whatever
the target. It is unbounded above and not monotone in flatness (uniform over the whole vocabulary scores above uniform
over k tokens), so thresholds in nats depend on the vocabulary's size; quantiles do not.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mixdistill.signals.steps import run_mean, run_min, window_mean


def token_confidence(confidence: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """DeepConf's C: minus the vocabulary pass' mean top-k log-probability, in nats; higher is surer."""
    return -confidence


def step_mean_confidence(
    token_confidence: Float[Array, "B T"], valid: Bool[Array, "B T"], step_run: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """Mean token confidence of the reasoning step, in nats."""
    return run_mean(token_confidence, valid, step_run)


def step_lowest_confidence(
    token_confidence: Float[Array, "B T"],
    valid: Bool[Array, "B T"],
    step_run: Int[Array, "B T"],
    *,
    window: int = 16,
) -> Float[Array, "B T"]:
    """Lowest mean confidence of any `window` neighbouring tokens of the step, in nats; a shorter step's plain mean."""
    return _lowest(token_confidence, valid, step_run, window)


def trace_mean_confidence(
    token_confidence: Float[Array, "B T"], valid: Bool[Array, "B T"], trace_run: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """Mean token confidence of the trace, in nats."""
    return run_mean(token_confidence, valid, trace_run)


def trace_lowest_confidence(
    token_confidence: Float[Array, "B T"],
    valid: Bool[Array, "B T"],
    trace_run: Int[Array, "B T"],
    *,
    window: int = 16,
) -> Float[Array, "B T"]:
    """Lowest group confidence of the trace (DeepConf): as `step_lowest_confidence`, windows may cross steps."""
    return _lowest(token_confidence, valid, trace_run, window)


def _lowest(x: Float[Array, "B T"], valid: Bool[Array, "B T"], run: Int[Array, "B T"], window: int):
    lowest = run_min(window_mean(x, valid, run, window), run)
    return jnp.where(jnp.isposinf(lowest), run_mean(x, valid, run), lowest)
