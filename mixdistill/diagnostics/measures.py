"""What a student makes of each teacher: fit, surprise and confidence, a trace at a time and over a teacher's traces.

Every measure of a teacher is a ratio of sums over its traces, so that intervals come the same way for all of them
(`intervals.ratio_estimate`). Known, and said in every report: all of these mis-rank teachers whose forms conflict, and
replications disagree on which ranks best (RSR has 0.86 in arXiv:2601.14249 and -0.18 on agents' traces). So there are
several, none is a default, and each has its interval.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mixdistill.diagnostics.intervals import Estimate, ratio_estimate
from mixdistill.signals import agreement, confidence

MAX_RANK = 100  # RSR's clip
HEAD = 2  # tokens of a step that ASLEC-DROP leaves out
WINDOW = 2048  # tokens; DeepConf's group, and its tail
BOTTOM = 0.1  # share of the groups

Steps = list[np.ndarray]


class TraceScores(NamedTuple):
    """One trace in the ledger's terms. Log-probabilities in nats; None: that context was not scored."""

    label_logprob: np.ndarray  # [n], of the completion's tokens after the prompt
    rank: np.ndarray  # [n]
    entropy: np.ndarray  # [n]
    confidence: np.ndarray  # [n], DeepConf's C: higher is surer
    step_id: np.ndarray  # [n], from 1
    correct: float = float("nan")  # 1, 0, or NaN where nobody graded
    alone: np.ndarray | None = None  # [n], log-probabilities after the start token
    local: np.ndarray | None = None  # [n], after the steps just before
    prompt: np.ndarray | None = None  # [m], of the prompt's tokens after the start token
    reverse: np.ndarray | None = None  # [m], of the prompt's tokens after the completion


class Definition(NamedTuple):
    """How to read a measure."""

    title: str
    unit: str
    better: str  # "low", "high" or "" where neither is
    about: str


MEASURES: dict[str, Definition] = {
    "surprisal": Definition("surprisal", "nats/token", "low", "mean -log p(token), over all tokens"),
    "grape": Definition(
        "GRAPE", "nats", "high", "mean log p(token) of each trace, then over traces (arXiv:2502.04194)"
    ),
    "rank_surprisal_ratio": Definition(
        "RSR", "1/nats", "low", "sum of traces' mean min(rank, 100) / sum of mean surprisals (arXiv:2601.14249)"
    ),
    "trace_rank_surprisal_ratio": Definition("RSR/trace", "1/nats", "low", "RSR of each trace, then the mean"),
    "local_naturalness": Definition(
        "LALP", "nats", "high", "mean over steps of log p given only the steps before (arXiv:2510.03988)"
    ),
    "aslec_drop": Definition("ASLEC", "nats", "high", "log p without each step's first tokens (arXiv:2604.06834)"),
    "ifd": Definition("IFD", "", "", "ppl(answer | prompt) / ppl(answer alone) (arXiv:2402.10110)"),
    "ifd_loss": Definition("IFD loss", "", "", "loss(answer | prompt) / loss(answer alone)"),
    "reversed_ifd": Definition("r-IFD", "", "low", "ppl(prompt | answer) / ppl(prompt alone) (arXiv:2402.10110)"),
    "reversed_ifd_loss": Definition("r-IFD loss", "", "low", "loss(prompt | answer) / loss(prompt alone)"),
    "entropy": Definition("entropy", "nats", "", "of the student's next token, over all tokens"),
    "confidence": Definition("confidence", "nats", "high", "mean of C, DeepConf (arXiv:2508.15260)"),
    "lowest_confidence": Definition("lowest C", "nats", "high", f"lowest mean C of any {WINDOW} tokens"),
    "bottom_confidence": Definition("bottom C", "nats", "high", f"mean C of the lowest tenth of {WINDOW}-token groups"),
    "tail_confidence": Definition("tail C", "nats", "high", f"mean C of the last {WINDOW} tokens"),
    "length": Definition("length", "tokens", "", "of the completion, with its end token"),
    "accuracy": Definition("accuracy", "", "high", "share of the graded traces whose answer is right"),
}

Parts = tuple[float, float]  # what a trace adds to a measure's numerator and denominator; NaN: nothing
NO_DATA: Parts = (float("nan"), float("nan"))


def trace_parts(trace: TraceScores) -> dict[str, Parts]:
    """What one trace adds to every measure. An empty trace adds nothing."""
    correct = (trace.correct, 1.0)
    size = len(trace.label_logprob)
    if not size:
        return {**dict.fromkeys(MEASURES, NO_DATA), "length": (0.0, 1.0), "accuracy": correct}
    surprisal = -trace.label_logprob.astype(np.float64)
    rank = np.minimum(trace.rank, MAX_RANK).astype(np.float64)
    sure = trace.confidence.astype(np.float64)
    return {
        "surprisal": (float(surprisal.sum()), float(size)),
        "grape": (float(-surprisal.mean()), 1.0),
        "rank_surprisal_ratio": (float(rank.mean()), float(surprisal.mean())),
        "trace_rank_surprisal_ratio": _once(agreement.rank_surprisal_ratio(rank, surprisal, max_rank=MAX_RANK)),
        "local_naturalness": NO_DATA
        if trace.local is None
        else _once(agreement.local_naturalness(split_steps(trace.local, trace.step_id))),
        "aslec_drop": _once(agreement.aslec_drop(split_steps(trace.label_logprob, trace.step_id), HEAD)),
        **_difficulty("ifd", trace.label_logprob, trace.alone),
        **_difficulty("reversed_ifd", trace.reverse, trace.prompt),
        "entropy": (float(trace.entropy.sum(dtype=np.float64)), float(size)),
        "confidence": (float(sure.mean()), 1.0),
        "lowest_confidence": _once(confidence.lowest_group(sure, WINDOW)),
        "bottom_confidence": _once(confidence.bottom_groups(sure, WINDOW, BOTTOM)),
        "tail_confidence": _once(confidence.tail(sure, WINDOW)),
        "length": (float(size), 1.0),
        "accuracy": correct,
    }


def by_teacher(
    parts: Sequence[Mapping[str, Parts]], teacher: np.ndarray, problem: np.ndarray, teachers: Sequence[str], **options
) -> dict[str, dict[str, Estimate]]:
    """`{teacher: {measure: Estimate}}` from `trace_parts` of each trace. A measure that no trace of any teacher has is
    left out; one that a teacher's traces lack is NaN there. `options` go to `ratio_estimate`."""
    columns = {name: np.array([part[name] for part in parts], np.float64).reshape(-1, 2) for name in MEASURES}
    known = {name: column for name, column in columns.items() if not np.isnan(column).any(axis=1).all()}
    return {
        name: {
            measure: ratio_estimate(column[teacher == k, 0], column[teacher == k, 1], problem[teacher == k], **options)
            for measure, column in known.items()
        }
        for k, name in enumerate(teachers)
    }


def split_steps(values: np.ndarray, step_id: np.ndarray) -> Steps:
    """The tokens' values step by step; a step without tokens has no entry."""
    return np.split(values, np.flatnonzero(np.diff(step_id)) + 1) if len(values) else []


def _once(value) -> Parts:
    """A trace's own value, averaged over traces; one that is not finite is no data."""
    return (float(value), 1.0) if np.isfinite(value) else NO_DATA


def _difficulty(name: str, after: np.ndarray | None, alone: np.ndarray | None) -> dict[str, Parts]:
    if after is None or alone is None or not len(after) or not len(alone):
        return {name: NO_DATA, f"{name}_loss": NO_DATA}
    nll = -after.mean(dtype=np.float64), -alone.mean(dtype=np.float64)
    return {
        name: _once(agreement.instruction_following_difficulty(*nll, kind="ppl")),
        f"{name}_loss": _once(agreement.instruction_following_difficulty(*nll, kind="loss")),
    }
