"""Tokens <-> reasoning steps and traces on packed rows: sums, means and extremes over runs, without host work.

A run is a maximal stretch of neighbouring tokens of one row that belong together. Every reduction gives each token its
run's value, `[B, T]` in and `[B, T]` out, so that a per-step or per-trace number is a signal like any other.
Reductions are float32 and never look across runs: a NaN stays inside its own.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped


def trace_run(segment_id: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Number of the trace in its row, from 0; padding counts as a trace of its own."""
    return _runs(segment_id)


def step_run(segment_id: Int[Array, "B T"], step_id: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Number of the reasoning step in its row, from 0; a prompt counts as a step of its own."""
    return _runs(segment_id, step_id)


def _runs(*ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    changes = [jnp.pad(x[:, 1:] != x[:, :-1], ((0, 0), (1, 0))) for x in ids]
    return jnp.cumsum(jnp.stack(changes).any(0), axis=1, dtype=jnp.int32)


def run_sum(x: Shaped[Array, "B T"], run: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Sum of `x` over each token's run."""
    return _reduce(jax.ops.segment_sum, x.astype(jnp.float32), run)


def run_max(x: Shaped[Array, "B T"], run: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Largest `x` in each token's run."""
    return _reduce(jax.ops.segment_max, x.astype(jnp.float32), run)


def run_min(x: Shaped[Array, "B T"], run: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Smallest `x` in each token's run."""
    return -run_max(-x.astype(jnp.float32), run)


def run_mean(
    x: Shaped[Array, "B T"], where: Bool[Array, "B T"], run: Int[Array, "B T"], empty: float = 0.0
) -> Float[Array, "B T"]:
    """Mean of `x` over the tokens of each run that `where` selects; `empty` for a run that has none."""
    count = run_sum(where, run)
    # The inner where keeps a NaN outside the selection out of the sum, and out of its gradient.
    mean = run_sum(jnp.where(where, x, 0), run) / jnp.maximum(count, 1)
    return jnp.where(count > 0, mean, empty)


def _reduce(reduction, x: Float[Array, "B T"], run: Int[Array, "B T"]) -> Float[Array, "B T"]:
    def row(x, run):
        return reduction(x, run, num_segments=x.shape[0], indices_are_sorted=True)[run]

    return jax.vmap(row)(x, run)


def run_start(run: Int[Array, "B T"], where: Bool[Array, "B T"]) -> Bool[Array, "B T"]:
    """True at the first token of each run that `where` selects: it stands for the run when runs are counted."""
    place = jnp.broadcast_to(jnp.arange(run.shape[1]), run.shape)
    first = run_min(jnp.where(where, place, run.shape[1]), run)
    return where & (place == first)


def window_mean(
    x: Float[Array, "B T"], where: Bool[Array, "B T"], run: Int[Array, "B T"], window: int
) -> Float[Array, "B T"]:
    """Mean over the last `window` tokens up to each token; +inf unless all of them are selected and of one run."""
    alone = jnp.where(where, run, -1)
    first = _shift(alone, window - 1, -2)
    whole = where & (first == run) & (_window_sum(where.astype(jnp.float32), window) == window)
    return jnp.where(whole, _window_sum(jnp.where(where, x, 0).astype(jnp.float32), window) / window, jnp.inf)


def lowest_mean(
    x: Float[Array, "B T"], where: Bool[Array, "B T"], run: Int[Array, "B T"], share: float
) -> Float[Array, "B T"]:
    """Mean of the lowest `share` of each run's selected values, at least one of them; 0 for a run that has none.

    A NaN counts as -inf, so that the mean is no number that a threshold would let through.
    """
    place = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape)
    values = jnp.where(where, jnp.where(jnp.isnan(x), -jnp.inf, x), jnp.inf).astype(jnp.float32)
    # Runs are numbered along the row, so a sort by run leaves each where it is, and orders it within.
    order = jnp.lexsort((values, run), axis=-1)
    count = run_sum(where, run)
    taken = place - run_min(place, run) < jnp.clip(jnp.floor(share * count), 1, jnp.maximum(count, 1))
    return run_mean(jnp.take_along_axis(values, order, axis=-1), taken & (count > 0), run)


def last_mean(
    x: Float[Array, "B T"], where: Bool[Array, "B T"], run: Int[Array, "B T"], length: int
) -> Float[Array, "B T"]:
    """Mean of the last `length` selected values of each run; 0 for a run that has none."""
    seen = jnp.cumsum(where, axis=1, dtype=jnp.int32)
    last = run_max(seen, run)
    return run_mean(x, where & (last - seen < length), run)


def _window_sum(x: Float[Array, "B T"], window: int) -> Float[Array, "B T"]:
    """Sum of the last `window` values. By doubling, not by differences of a running sum: those lose float32 digits
    in long rows and carry one NaN through the rest of the row."""
    total, covered, size = jnp.zeros_like(x), 0, 1
    while covered < window:
        if window & size:
            total, covered = total + _shift(x, covered, 0), covered + size
        x, size = x + _shift(x, size, 0), size * 2
    return total


def _shift(x: Shaped[Array, "B T"], by: int, fill) -> Shaped[Array, "B T"]:
    """`x` moved `by` columns to the right."""
    by = min(by, x.shape[1])
    return jnp.pad(x[:, : x.shape[1] - by], ((0, 0), (by, 0)), constant_values=fill)


def quantile(x: Float[Array, "B T"], where: Bool[Array, "B T"], share: float) -> Float[Array, ""]:
    """The value below which `share` of the selected `x` lie (the lower one between two); -inf if none is selected."""
    ordered = jnp.sort(jnp.where(where, x, jnp.inf), axis=None)
    count = where.sum()
    place = jnp.clip(jnp.floor(share * count).astype(jnp.int32), 0, jnp.maximum(count - 1, 0))
    return jnp.where(count > 0, ordered[place], -jnp.inf)


def batch_wide(fn: Callable) -> Callable:
    """Mark a gate that compares the traces of a microbatch with each other (a quantile): other splits, other result."""
    fn.batch_wide = True  # type: ignore[attr-defined]
    return fn
