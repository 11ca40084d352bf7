"""Sketches of per-trace gradients, and what they say: GRACE, cosines between teachers, conflict rates.

All of it is known to mislead about mixtures: two teachers that clash at few tokens have gradients that agree on all the
others. Reported because people ask for it, never a gate here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mixdistill.signals.steps import run_sum, trace_run
from mixdistill.students.student import Params, Student, TokenBatch, logits

SIDE = 32  # a sketch is SIDE x SIDE numbers
SPLITS, TEST_SHARE = 10, 0.1
SMALLEST = 1e-12  # eigenvalue, as released: what rounding leaves of a zero


def head_gradients(
    student: Student, params: Params, batch: TokenBatch, *, num_traces: int, key: Array, side: int = SIDE
) -> Float[Array, "B N S"]:
    """Sketches of the gradient of each trace's mean token loss with respect to the unembedding: `[B, num_traces,
    side * side]`, entry (b, n) for the (n+1)-th trace of row b, zeros where there is none.

    The gradient is sum_t h_t (p_t - onehot_t)^T / tokens; its sketch is A^T G B / side with random signs A `[D, side]`,
    B `[V, side]`, so it is projected without ever being held. Inner products of sketches are, in expectation, those of
    the gradients. Use one `key` for all that is to be compared.
    """
    hashable = student._replace(init=None, axes=None)  # type: ignore[arg-type]
    return _head_gradients(hashable, params, batch, key, num_traces, side)


@functools.partial(jax.jit, static_argnames=("student", "num_traces", "side"))
def _head_gradients(student: Student, params: Params, batch: TokenBatch, key: Array, num_traces: int, side: int):
    hidden = student.hidden(params, batch).astype(jnp.float32)
    signs = jax.random.split(key)
    a = jax.random.rademacher(signs[0], (hidden.shape[-1], side), jnp.float32)
    b = jax.random.rademacher(signs[1], (student.vocab_size, side), jnp.float32)
    inside = hidden @ a

    def row(args: tuple) -> Float[Array, "N S"]:
        hidden, inside, target, weight, trace = args
        z = logits(student, params, hidden)
        slope = 1.0 if student.soft_cap is None else 1 - (z / student.soft_cap) ** 2
        error = (jax.nn.softmax(z) - jax.nn.one_hot(target, z.shape[-1])) * slope * weight[:, None]
        member = (trace[:, None] == jnp.arange(num_traces)).astype(jnp.float32)
        return jnp.einsum("tn,ta,tb->nab", member, inside, error @ b).reshape(num_traces, side * side) / side

    trace = trace_run(batch["segment_id"])
    weight = _mean_weights(batch["valid"], trace)
    # One row at a time: its logits [T, V] are all that is held.
    return jax.lax.map(row, (hidden, inside, batch["target"], weight, trace))


def _mean_weights(valid: Bool[Array, "B T"], trace: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """1 / (valid tokens of the trace), 0 outside."""
    return jnp.where(valid, 1 / jnp.maximum(run_sum(valid, trace), 1), 0.0)


def grace(train_rows: np.ndarray, test_rows: np.ndarray, smoothing: float = 1e-3) -> float:
    """tr(S_train^-1 S_test), S the uncentred second moment of gradient rows `[n, d]` (GRACE, arXiv:2511.02833). Lower
    is meant to be better.

    As released: training rows have length one, test rows keep theirs; S_train's eigenvalues are smoothed to
    (1 - smoothing) * value + smoothing * mean. NaN without rows on either side, or when all training rows are zero.
    """
    train, test = (np.atleast_2d(np.asarray(rows, np.float64)) for rows in (train_rows, test_rows))
    norms = np.linalg.norm(train, axis=1, keepdims=True) if train.size else np.zeros((0, 1))
    if not train.size or not test.size or not norms.any():
        return float("nan")
    train = np.divide(train, norms, out=np.zeros_like(train), where=norms > 0)
    # Of S_train only the rows' span has eigenvalues above zero; everything across it costs the same.
    _, singular, span = np.linalg.svd(train, full_matrices=False)
    values = np.maximum(singular**2 / len(train), SMALLEST)
    size, across = train.shape[1], train.shape[1] - len(values)
    mean = (values.sum() + across * SMALLEST) / size
    smoothed, rest = ((1 - smoothing) * v + smoothing * mean for v in (values, SMALLEST))
    inside = (test @ span.T) ** 2
    outside = np.maximum((test**2).sum(axis=1) - inside.sum(axis=1), 0) if across else np.zeros(1)
    return float((inside.mean(axis=0) / smoothed).sum() + outside.mean() / rest)


def grace_of_traces(rows: np.ndarray, problem: np.ndarray, *, splits: int = SPLITS, seed: int = 0) -> float:
    """Mean `grace` over random splits by problem, a tenth of them for the test; NaN for fewer than two problems."""
    problems = np.unique(problem)
    if len(problems) < 2:
        return float("nan")
    num_test, scores = max(1, int(len(problems) * TEST_SHARE)), []
    for split in range(splits):
        tested = np.random.default_rng((seed, split)).permutation(problems)[:num_test]
        is_test = np.isin(problem, tested)
        scores.append(grace(rows[~is_test], rows[is_test]))
    return float(np.mean(scores))


def teacher_cosines(rows: np.ndarray, teacher: np.ndarray, num_teachers: int) -> np.ndarray:
    """`[K, K]`: cosine between the teachers' mean gradients; NaN for a teacher without traces or without a gradient."""
    means = np.stack([rows[teacher == k].sum(axis=0) for k in range(num_teachers)])
    norms = np.linalg.norm(means, axis=1)
    unit = np.divide(means, norms[:, None], out=np.full_like(means, np.nan), where=norms[:, None] > 0)
    return np.clip(unit @ unit.T, -1, 1)


def conflict_rates(rows: np.ndarray, teacher: np.ndarray, num_teachers: int) -> np.ndarray:
    """`[K, K]`: share of pairs of traces, one of either teacher, whose gradients point against each other: how often
    PCGrad (arXiv:2001.06782) would step in. A trace is not paired with itself; NaN where there is no pair."""
    rates = np.full((num_teachers, num_teachers), np.nan)
    of_teacher = [rows[teacher == k] for k in range(num_teachers)]
    for i in range(num_teachers):
        for j in range(i + 1):
            products = of_teacher[i] @ of_teacher[j].T
            pairs = products[np.triu_indices(len(products), 1)] if i == j else products
            if pairs.size:
                rates[i, j] = rates[j, i] = np.mean(pairs < 0)
    return rates
