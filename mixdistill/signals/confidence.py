"""How sure the student is, by token, by reasoning step and by trace (DeepConf's quantities, arXiv:2508.15260).

Token confidence is C = -mean log-probability of the k most likely tokens, in nats: higher is more peaked, whatever
the target. It is unbounded above and not monotone in flatness (uniform over the whole vocabulary scores above uniform
over k tokens), so thresholds in nats depend on the vocabulary's size; quantiles do not.

First the signals, on packed rows; then the same on one recorded trace, on the host: C in, numbers out.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import ArrayLike

from mixdistill.signals.steps import last_mean, lowest_mean, run_mean, run_min, window_mean


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


def step_bottom_confidence(
    token_confidence: Float[Array, "B T"],
    valid: Bool[Array, "B T"],
    step_run: Int[Array, "B T"],
    *,
    window: int = 16,
    fraction: float = 0.1,
) -> Float[Array, "B T"]:
    """Mean of the lowest `fraction` of the step's windows, at least one, in nats; a shorter step's plain mean."""
    return _bottom(token_confidence, valid, step_run, window, fraction)


def step_tail_confidence(
    token_confidence: Float[Array, "B T"],
    valid: Bool[Array, "B T"],
    step_run: Int[Array, "B T"],
    *,
    length: int = 16,
) -> Float[Array, "B T"]:
    """Mean confidence of the step's last `length` tokens, in nats."""
    return last_mean(token_confidence, valid, step_run, length)


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


def trace_bottom_confidence(
    token_confidence: Float[Array, "B T"],
    valid: Bool[Array, "B T"],
    trace_run: Int[Array, "B T"],
    *,
    window: int = 16,
    fraction: float = 0.1,
) -> Float[Array, "B T"]:
    """Bottom-10 % group confidence of the trace (DeepConf): as `step_bottom_confidence`, windows may cross steps."""
    return _bottom(token_confidence, valid, trace_run, window, fraction)


def trace_tail_confidence(
    token_confidence: Float[Array, "B T"],
    valid: Bool[Array, "B T"],
    trace_run: Int[Array, "B T"],
    *,
    length: int = 16,
) -> Float[Array, "B T"]:
    """Tail confidence of the trace (DeepConf): the mean over its last `length` tokens, in nats."""
    return last_mean(token_confidence, valid, trace_run, length)


def step_teacher_logprob(
    teacher_logprob: Float[Array, "B T"], valid: Bool[Array, "B T"], step_run: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """Mean of the teacher's own log-probabilities over the step, in nats; NaN where the teacher recorded none."""
    recorded = valid & ~jnp.isnan(teacher_logprob)
    return run_mean(teacher_logprob, recorded, step_run, empty=jnp.nan)


def _lowest(x: Float[Array, "B T"], valid: Bool[Array, "B T"], run: Int[Array, "B T"], window: int):
    lowest = run_min(window_mean(x, valid, run, window), run)
    return jnp.where(jnp.isposinf(lowest), run_mean(x, valid, run), lowest)


def _bottom(x: Float[Array, "B T"], valid: Bool[Array, "B T"], run: Int[Array, "B T"], window: int, fraction: float):
    means = window_mean(x, valid, run, window)
    whole = ~jnp.isposinf(means)
    return jnp.where(run_min(means, run) < jnp.inf, lowest_mean(means, whole, run, fraction), run_mean(x, valid, run))


# DeepConf's defaults for one recorded trace are window = length = 2048 tokens, fraction 0.1, and C over k = 20 tokens.


def group_means(confidence: ArrayLike, window: int) -> np.ndarray:
    """Mean C of each `window` neighbouring tokens, stride 1; the plain mean of a shorter trace; empty for no tokens."""
    c = np.asarray(confidence, np.float64)
    if c.size <= window:
        return c.mean(keepdims=True) if c.size else c
    return np.lib.stride_tricks.sliding_window_view(c, window).mean(axis=1)


def lowest_group(confidence: ArrayLike, window: int) -> float:
    """The lowest group mean, in nats; NaN for no tokens."""
    groups = group_means(confidence, window)
    return float(groups.min()) if groups.size else float("nan")


def bottom_groups(confidence: ArrayLike, window: int, fraction: float) -> float:
    """Mean of the lowest max(1, floor(fraction * groups)) group means, in nats; NaN for no tokens."""
    groups = np.sort(group_means(confidence, window))
    return float(groups[: max(1, int(fraction * groups.size))].mean()) if groups.size else float("nan")


def tail(confidence: ArrayLike, length: int) -> float:
    """Mean C of the last `length` tokens, in nats; NaN for no tokens."""
    c = np.asarray(confidence, np.float64)[-length:]
    return float(c.mean()) if c.size else float("nan")


def online_threshold(warmup_minima: ArrayLike, keep_percent: float) -> float:
    """DeepConf's stopping bar: the value that `keep_percent` of the warm-up traces' lowest group means reach, in nats.

    It is the (100 - keep_percent)th percentile, interpolated: 10 is the aggressive setting, 90 the cautious one. NaN
    without warm-up traces.
    """
    minima = np.asarray(warmup_minima, np.float64)
    return float(np.percentile(minima, 100 - keep_percent)) if minima.size else float("nan")
