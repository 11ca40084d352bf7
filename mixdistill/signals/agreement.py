"""How well a teacher's trace agrees with the student: surprisal in its forms, rank, and confident contradiction.

All of these are cheap (they come from the forward pass already made) and all of them mis-rank teachers whose forms
conflict: two teachers that share their surface look compatible, and are the conflict. They make safe filters around a
known anchor; they are no measure of who may join it.

First the signals, on packed rows; then the measures of one recorded trace, or several, on the host.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import ArrayLike

from mixdistill.errors import unknown
from mixdistill.signals.steps import run_max, run_mean, run_min, run_start, run_sum


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
    return _rank_surprisal(label_rank, surprisal, valid, trace_run, max_rank)


def step_rank_surprisal(
    label_rank: Int[Array, "B T"],
    surprisal: Float[Array, "B T"],
    valid: Bool[Array, "B T"],
    step_run: Int[Array, "B T"],
    *,
    max_rank: int = 100,
) -> Float[Array, "B T"]:
    """As `trace_rank_surprisal`, of the reasoning step."""
    return _rank_surprisal(label_rank, surprisal, valid, step_run, max_rank)


def excess_loss(surprisal: Float[Array, "B T"], reference_logprob: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """How many nats the student is behind a reference at the token; 0 where it is ahead (arXiv:2305.10429).
    `reference_logprob` is a sidecar field: one more forward, of the reference."""
    return jnp.maximum(surprisal + reference_logprob, 0.0)


SMALLEST_SURPRISAL = 1e-6  # nats a trace; below it the ratio is only noise of float32


def _rank_surprisal(rank, surprisal, valid, run, max_rank: int) -> Float[Array, "B T"]:
    ranks = run_sum(jnp.where(valid, jnp.minimum(rank, max_rank), 0), run)
    return ranks / jnp.maximum(run_sum(jnp.where(valid, surprisal, 0), run), SMALLEST_SURPRISAL)


def trace_difficulty(
    label_logprob: Float[Array, "B T"],
    alone_logprob: Float[Array, "B T"],
    valid: Bool[Array, "B T"],
    trace_run: Int[Array, "B T"],
    *,
    kind: Literal["ppl", "loss"] = "ppl",
) -> Float[Array, "B T"]:
    """Instruction-following difficulty of the trace: how little the prompt helps, see
    `instruction_following_difficulty`. `alone_logprob` is a sidecar field: the student's log-probability of the same
    tokens after the start token alone, one more forward."""
    after = run_mean(-label_logprob, valid, trace_run)
    alone = run_mean(-alone_logprob, valid, trace_run)
    return jnp.exp(after - alone) if _kind(kind) == "ppl" else after / jnp.maximum(alone, SMALLEST_SURPRISAL)


def trace_local_naturalness(
    local_logprob: Float[Array, "B T"],
    valid: Bool[Array, "B T"],
    step_run: Int[Array, "B T"],
    trace_run: Int[Array, "B T"],
) -> Float[Array, "B T"]:
    """Mean over the trace's steps of each step's mean log-probability given only the steps just before it, in nats
    (LALP, arXiv:2510.03988; the size of the local window is not published). `local_logprob` is a sidecar field: one
    more forward with block-local attention."""
    step_mean = run_mean(local_logprob, valid, step_run)
    return run_mean(step_mean, run_start(step_run, valid), trace_run)


def trace_headless_logprob(
    label_logprob: Float[Array, "B T"],
    valid: Bool[Array, "B T"],
    step_run: Int[Array, "B T"],
    trace_run: Int[Array, "B T"],
    *,
    head: int = 2,
) -> Float[Array, "B T"]:
    """Mean log-probability of the trace's tokens without the first `head` of each step, in nats (ASLEC-DROP,
    arXiv:2604.06834); 0 for a trace that has no others."""
    seen = jnp.cumsum(valid, axis=1, dtype=jnp.int32)
    before = run_min(jnp.where(valid, seen, seen + 1), step_run)
    return run_mean(label_logprob, valid & (seen - before >= head), trace_run)


def contradiction(
    label_logprob: Float[Array, "B T"],
    top1_logprob: Float[Array, "B T"],
    *,
    implausible: float = 0.1,
    sure: float = 0.7,
) -> Bool[Array, "B T"]:
    """The student confidently disagrees: p(target) < implausible while its own first choice has more than `sure`."""
    return (label_logprob < jnp.log(implausible)) & (top1_logprob > jnp.log(sure))


def rank_surprisal_ratio(rank: ArrayLike, surprisal: ArrayLike, max_rank: int = 100) -> float:
    """RSR of one trace: sum of min(rank, max_rank) over sum of surprisal (nats), arXiv:2601.14249; low is meant to be
    good. Infinite for a trace that is certain, NaN for one without tokens."""
    ranks = np.minimum(np.asarray(rank, np.float64), max_rank).sum()
    return _ratio(ranks, np.asarray(surprisal, np.float64).sum())


def dataset_rank_surprisal_ratio(traces: Iterable[tuple[ArrayLike, ArrayLike]], max_rank: int = 100) -> float:
    """RSR of many traces, each (rank, surprisal): sum of their mean clipped ranks over sum of their mean surprisals.

    So every trace counts once, whatever its length; that is not the ratio of all tokens pooled. Traces without tokens
    are left out.
    """
    ranks, nats = 0.0, 0.0
    for rank, surprisal in traces:
        if np.size(rank):
            ranks += np.minimum(np.asarray(rank, np.float64), max_rank).mean()
            nats += np.asarray(surprisal, np.float64).mean()
    return _ratio(ranks, nats)


def instruction_following_difficulty(
    nll_with: ArrayLike, nll_without: ArrayLike, kind: Literal["ppl", "loss"] = "ppl"
) -> float:
    """IFD: how hard the answer still is once its instruction is known. Mean NLLs, or those of tokens, in nats.

    "ppl" is the ratio of perplexities, exp(mean with - mean without) (arXiv:2402.10110), "loss" that of mean losses
    (arXiv:2308.12032); they order traces differently. Above 1 the instruction hinders. The same function of a prompt's
    NLL after and without the answer is r-IFD. NaN where either is empty; infinite where the bare loss is 0.
    """
    if not (np.size(nll_with) and np.size(nll_without)):
        return float("nan")
    after, alone = (np.asarray(nll, np.float64).mean() for nll in (nll_with, nll_without))
    if _kind(kind) == "loss":
        return _ratio(after, alone)
    with np.errstate(over="ignore"):
        return float(np.exp(after - alone))


def local_naturalness(steps: Sequence[ArrayLike]) -> float:
    """LALP (arXiv:2510.03988): mean over steps of each step's mean log-probability, in nats; higher is more natural.

    `steps` holds the log-probabilities of each step's tokens, given only the steps just before. Steps count equally;
    those without tokens are left out; NaN where there are no others.
    """
    means = [np.asarray(step, np.float64).mean() for step in steps if np.size(step)]
    return float(np.mean(means)) if means else float("nan")


def aslec_drop(steps: Sequence[ArrayLike], head: int) -> float:
    """ASLEC-DROP (arXiv:2604.06834): mean log-probability of all tokens but the first `head` of each step, in nats.

    The first tokens of a step are unlikely whatever it says, so that short steps look unnatural. NaN where nothing is
    left.
    """
    rest = [np.asarray(step, np.float64)[head:] for step in steps]
    left = np.concatenate(rest) if rest else np.zeros(0)
    return float(left.mean()) if left.size else float("nan")


def _ratio(top: float, bottom: float) -> float:
    """NaN for 0 / 0."""
    if bottom == 0:
        return float("nan") if top == 0 else float("inf")
    return float(top / bottom)


def _kind(kind: str) -> str:
    if kind not in ("ppl", "loss"):
        raise unknown("kind", kind, ("ppl", "loss"))
    return kind
